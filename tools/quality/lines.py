"""The methods that the quality table compares: criteria of this project under its search, and the peers in their own pipelines."""

from __future__ import annotations

from optin_fx.recipe import DEFAULT_SCORE

from .methods import Method

RANK, SLICE, REFIT = "search-rank", "rewrite-slice", "rewrite-reconstruct"

OURS = {
    "random": "score-random",
    "magnitude": "score-magnitude",
    "activation": "score-activation",
    "variance (FLAP)": "score-activation{moment=variance, weighted=True}",
    "wanda": "score-wanda",
    "taylor": "score-taylor",
    "fisher": "score-fisher",
    "reconstruction": "score-reconstruction",
    "trajectory-sketch, sum": "score-trajectory-sketch{depth=sum}",
    "trajectory-sketch, last": "score-trajectory-sketch{depth=last}",
    "trajectory-sketch": "score-trajectory-sketch",
}
"""Criteria by name. The last one is, up to the weight of samples, the default score of `ofx.prune`."""

JOINT = "joint{shares=(0.4, 0.8), measured=32, allocate=within}"
MEASURED = f"tries={('', f'{JOINT}: balance=0.5', 'reconstruction:')}, cautious='{JOINT}: discount=1'"
"""Tries with widths by measured losses, in place of `balance=0.5` and `discount=1` of the scores at hand."""

TRIED = (
    Method("joint + refit", f"score-joint | {RANK} | {REFIT}"),
    Method("trajectory-sketch, in two steps + refit", f"score-trajectory-sketch | search-steps | {REFIT}"),
    Method("by the root of samples, in two steps + refit", f"score-{DEFAULT_SCORE} | search-steps | {REFIT}"),
    Method("by the root of samples + refit", f"score-{DEFAULT_SCORE} | {RANK} | {REFIT}"),
    Method("measured widths, tried", f"score-{DEFAULT_SCORE} | search-trial{{{MEASURED}, narrowed=True}} | {REFIT} | narrow-rows"),
    Method("default of prune, all rows computed", f"score-{DEFAULT_SCORE} | search-trial | {REFIT}", tasks=("mnist-vit", "reviews")),
    Method("default of prune", f"score-{DEFAULT_SCORE} | search-trial{{narrowed=True}} | {REFIT} | narrow-rows"),
)
"""Widths that were measured or tried, and the default score. The last one is what `ofx.prune` does by default."""

CRITERIA = (
    *(Method(f"{name} + refit", f"{score} | {RANK} | {REFIT}") for name, score in OURS.items()),
    *(Method(name, f"{score} | {RANK} | {SLICE}") for name, score in OURS.items()),
)

PEERS = (
    Method("uniform width, magnitude", f"score-magnitude | search-uniform | {SLICE}", peer=True),
    Method("uniform width, magnitude + refit", f"score-magnitude | search-uniform | {REFIT}", peer=True),
    Method("CORP-style", f"score-activation{{moment=energy}} | search-uniform | {REFIT}{{target=own}}", peer=True),
    Method(
        "Kwon et al., full", "score-fisher{keep_samples=True} | search-kwon | rearrange-fisher{search=greedy} | rewrite-tune", peer=True
    ),
    Method(
        "OPTIN, exact (32 inputs)",
        "score-trajectory{lam=0.1, depth=sum, samples=32} | search-kwon | rewrite-slice",
        peer=True,
        tasks=("mnist-vit", "mnist-resnet"),
    ),
    Method("K-prune", "k-prune", peer=True, tasks=("mnist-vit", "reviews", "spans")),
    Method("torch-pruning, magnitude", "torch-pruning{importance=magnitude}", peer=True),
    Method("torch-pruning, Taylor", "torch-pruning{importance=taylor}", peer=True),
    Method("torch-pruning, Hessian", "torch-pruning{importance=hessian}", peer=True),
)

METHODS = CRITERIA + TRIED + PEERS

"""The ablation: around the default pipeline, one decision at a time, and criterion against compensation in full."""

from __future__ import annotations

from dataclasses import dataclass

from optin_fx.recipe import DEFAULT_SCORE

from .lines import OURS
from .methods import Method

SCORE, SEARCH, REFIT = "score-trajectory-sketch", "search-rank", "rewrite-reconstruct"
CRITERIA = {"trajectory-sketch": SCORE} | {name: text for name, text in OURS.items() if "trajectory" not in name}


@dataclass(frozen=True)
class Sweep:
    """One decision: its question, and the pipelines that answer it differently; the first is what the others are compared with."""

    title: str
    question: str
    methods: tuple[Method, ...]


def _methods(**texts: str) -> tuple[Method, ...]:
    return tuple(Method(name.replace("_", " "), text) for name, text in texts.items())


def _pipeline(score: str = SCORE, search: str = SEARCH, rewrite: str = REFIT) -> str:
    return f"{score} | {search} | {rewrite}"


def _levels() -> tuple[Method, ...]:
    rewrites = {"affine": REFIT, "scale": "rewrite-tune", "bias": f"{REFIT}{{level=bias}}", "none": "rewrite-slice"}
    return tuple(
        Method(f"{name}, {level}", _pipeline(score, rewrite=rewrite))
        for name, score in CRITERIA.items()
        for level, rewrite in rewrites.items()
    )


SWEEPS = (
    Sweep("Criterion and compensation", "Does a better criterion still matter once what is left is refitted?", _levels()),
    Sweep(
        "What the refit aims at, and what it reads",
        "The dense residual stream, the dense output or the layer's own output; inputs of the pruned program or of the dense one; and "
        "are layers behind refitted, or the consumers of what went alone?",
        _methods(
            residual_stream=_pipeline(),
            consumers_alone=_pipeline(rewrite=f"{REFIT}{{layers=consumers}}"),
            dense_output=_pipeline(rewrite=f"{REFIT}{{target=dense}}"),
            own_output=_pipeline(rewrite=f"{REFIT}{{target=own}}"),
            dense_inputs=_pipeline(rewrite=f"{REFIT}{{target=dense, mode=parallel}}"),
            rows_by_gradient=_pipeline(rewrite=f"{REFIT}{{rows_by=gradient}}"),
        ),
    ),
    Sweep(
        "How the ridge is chosen",
        "By held-out rows, or fixed?",
        _methods(
            held_out=_pipeline(),
            fixed_0001=_pipeline(rewrite=f"{REFIT}{{ratios=(0.001,)}}"),
            fixed_01=_pipeline(rewrite=f"{REFIT}{{ratios=(0.1,)}}"),
            nearly_none=_pipeline(rewrite=f"{REFIT}{{ratios=(1e-08,)}}"),
        ),
    ),
    Sweep(
        "Allocation",
        "How much may one group lose against another?",
        _methods(
            rank=_pipeline(),
            balance_03=_pipeline(search=f"{SEARCH}{{balance=0.3}}"),
            balance_05=_pipeline(search=f"{SEARCH}{{balance=0.5}}"),
            balance_07=_pipeline(search=f"{SEARCH}{{balance=0.7}}"),
            discount_075=_pipeline(search=f"{SEARCH}{{discount=0.75}}"),
            discount_1=_pipeline(search=f"{SEARCH}{{discount=1}}"),
            default_of_prune=_pipeline(f"score-{DEFAULT_SCORE}", "search-trial{narrowed=True}", f"{REFIT} | narrow-rows"),
            kwon=_pipeline(search="search-kwon"),
            knapsack=_pipeline(search="search-knapsack"),
            uniform=_pipeline(search="search-uniform"),
        ),
    ),
    Sweep(
        "Depth",
        "Which of the later layers count for a unit?",
        _methods(
            mean=_pipeline(),
            sum=_pipeline(f"{SCORE}{{depth=sum}}"),
            last=_pipeline(f"{SCORE}{{depth=last}}"),
            output_alone=_pipeline("score-fisher{labels=sampled}"),
            mean_output_times_10=_pipeline(f"{SCORE}{{lam=10.0}}"),
            mean_output_times_01=_pipeline(f"{SCORE}{{lam=0.1}}"),
        ),
    ),
    Sweep(
        "Samples",
        "Do scores add up samples in full, or by the root of each one's total, so that few do not outweigh the others?",
        _methods(
            mean=_pipeline(),
            root=_pipeline(f"{SCORE}{{power=0.5}}"),
            root_output_times_100=_pipeline(f"{SCORE}{{power=0.5, lam=100}}"),
            discount_1=_pipeline(search=f"{SEARCH}{{discount=1}}"),
            root_output_times_100_and_discount_1=_pipeline(f"{SCORE}{{power=0.5, lam=100}}", f"{SEARCH}{{discount=1}}"),
        ),
    ),
    Sweep(
        "Which units",
        "Heads and neurons only, or dims inside heads, too?",
        _methods(
            whole_heads=_pipeline(),
            also_inside_heads=_pipeline(
                search=f"{SEARCH}{{kinds=('head', 'kv-group', 'neuron', 'filter', 'residual', 'qk-dim', 'v-dim', 'head-dim')}}"
            ),
        ),
    ),
)

BUDGET = {"reviews": 40.0, "photos": 65.0, "mnist-vit": 30.0, "mnist-resnet": 30.0}
"""Where each task tells methods apart: percent of the dense FLOPs."""

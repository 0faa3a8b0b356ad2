"""`verify`: the oracle on the user's own model. Physically smaller must equal masked, to floating-point error."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

from optin_fx.analysis import NORMALISED
from optin_fx.choices import Choosing, Following, apart
from optin_fx.data import Batch
from optin_fx.errors import VerifyError
from optin_fx.interpreter import flat_inputs
from optin_fx.plan import Plan, resolve
from optin_fx.program import Program
from optin_fx.rewriting import mask_graph, slice_graph

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
"""Largest relative difference that counts as equal, by the coarsest floating dtype of the outputs, and of what is computed on the way."""


@dataclass(frozen=True)
class Agreement:
    """How far two programs' outputs are apart on the same inputs.

    Attributes:
        max_abs: largest absolute difference over all floating outputs.
        max_rel: the same divided by the largest magnitude of the output that it is in.
        tolerance: what still counts as equal at the outputs' precision.
        moved: relative difference of the masked outputs from the dense ones; zero would mean that the test saw nothing.
        inexact: how far the smaller program is from the masked one because the statistics of norms lost entries, where the program allows
            that (`Program.allowing`); None where no such width was cut. `max_rel` then compares with a masked program whose norms
            look at the kept entries only, so that it still tells whether the cut was made right.
        rounding: `max_rel` where both make their own choices, if only the same choices show that they are equal: which of near ties a
            detector's top-k takes hangs on the last bit. The other figures are then with the masked program's choices
            (`optin_fx.choices`). None where there was no need.
    """

    max_abs: float
    max_rel: float
    tolerance: float
    moved: float = float("nan")
    inexact: float | None = None
    rounding: float | None = None

    @property
    def equal(self) -> bool:
        """True if the difference is within the tolerance."""
        return self.max_rel <= self.tolerance

    def __bool__(self) -> bool:
        return self.equal

    def __str__(self) -> str:
        word = "equal" if self.equal else "NOT EQUAL"
        differs = f"max abs {self.max_abs:.2e}, max rel {self.max_rel:.2e} (tolerance {self.tolerance:.0e})"
        allowed = (
            "" if self.inexact is None else f"; INEXACT, as allowed: norms without the removed entries change it by {self.inexact:.2e}"
        )
        ties = (
            ""
            if self.rounding is None
            else f"; with the same choices among near ties: left to rounding, they move it by {self.rounding:.2e}"
        )
        return f"{word}: {differs}, moved from dense by {self.moved:.2e}{allowed}{ties}"


def verify(program: Program, plan: Plan, *, strict: bool = False) -> Agreement:
    """Compare the sliced and the masked program on the example inputs; where they differ, with the same choices, see `Agreement.rounding`.

    Args:
        strict: raise instead of returning an agreement that is not equal.

    Raises:
        VerifyError: with `strict`, if they differ.
        PlanError: the plan does not fit the program.
    """
    cut = resolve(program, plan)
    allowed = cut.analysis.allowed_leaves()
    loses = any(leaf in allowed and allowed[leaf].code == NORMALISED for leaf in cut.kept)
    small, zeroed = slice_graph(program, cut), mask_graph(program, cut, statistics_of_kept=loses)
    with torch.no_grad():
        ours, theirs, dense = (m(*program.args, **program.kwargs) for m in (small, zeroed, program.graph_module))
    found = agreement(ours, theirs)
    moved = agreement(results_of(program, theirs), results_of(program, dense))
    inexact = None
    if loses:
        with torch.no_grad():
            plain = mask_graph(program, cut)(*program.args, **program.kwargs)
        inexact = agreement(results_of(program, theirs), results_of(program, plain)).max_rel
    found = replace(found, tolerance=max(found.tolerance, _inside(program)))
    if not found:
        found = _with_the_same_choices(program, small, zeroed, found)
    found = replace(found, moved=moved.max_rel, inexact=inexact)
    if strict and not found:
        raise VerifyError(
            f"the smaller program differs from the masked one by {found.max_rel:.2e} (relative)",
            so="the rewrite is not exact for this model, and its result must not be used",
            fix="optin_fx.shrink.bisect(program, plan) names the first node that differs; please report it",
        )
    return found


def _with_the_same_choices(program: Program, small: fx.GraphModule, zeroed: fx.GraphModule, own: Agreement) -> Agreement:
    """Their agreement where the smaller program takes the masked one's choices (`optin_fx.choices`); their own if that is not equal."""
    inputs = flat_inputs(program, Batch(program.args, program.kwargs))
    leader = Choosing(zeroed)
    follower = Following(small, leader)
    with torch.no_grad():
        theirs, ours = (run.run(*inputs, enable_io_processing=False) for run in (leader, follower))
    found = replace(agreement(ours, theirs), tolerance=own.tolerance, rounding=own.max_rel)
    return found if found and follower.furthest <= own.tolerance else own


def _inside(program: Program) -> float:
    """The tolerance of what the graph computes: a region under autocast rounds to bfloat16 though all that is returned is float32."""
    values = (node.meta.get("val") for node in program.graph_module.graph.nodes if node.op == "call_function")
    return max((TOLERANCE.get(value.dtype, 0.0) for value in values if isinstance(value, torch.Tensor)), default=0.0)


def results_of(program: Program, outputs: Any) -> list[Any]:
    """Flat outputs without caches, which are narrower when masked (see `mask_graph`)."""
    return [leaf for place, leaf in enumerate(pytree.tree_leaves(outputs)) if place not in program.state_outputs]


def agreement(ours: Any, theirs: Any) -> Agreement:
    """Compare two outputs of the same structure, tensor by tensor."""
    left, right = _floats(ours), _floats(theirs)
    if len(left) != len(right):
        raise VerifyError(f"{len(left)} floating outputs against {len(right)}", so="they cannot be compared", fix="compare like with like")
    max_abs = max_rel = 0.0
    tolerance = TOLERANCE[torch.float64] if left else 0.0
    for a, b in zip(left, right, strict=True):
        if a.shape != b.shape:
            raise VerifyError(
                f"outputs of shapes {tuple(a.shape)} and {tuple(b.shape)}", so="they cannot be compared", fix="compare like with like"
            )
        tolerance = max(tolerance, TOLERANCE.get(a.dtype, 0.0), TOLERANCE.get(b.dtype, 0.0))
        absolute, relative = apart(a, b)
        max_abs, max_rel = max(max_abs, absolute), max(max_rel, relative)
        if absolute == float("inf"):
            break
    return Agreement(max_abs, max_rel, tolerance)


def _floats(outputs: Any) -> Sequence[torch.Tensor]:
    return [leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, torch.Tensor) and leaf.is_floating_point()]

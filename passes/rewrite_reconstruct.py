"""The rewrite with compensation: slice, and refit every consumer of a pruned group, and every layer behind, in closed form."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from optin_fx.compensation import Compensation
from optin_fx.data import batches_of
from optin_fx.errors import PipelineError
from optin_fx.pipeline import Pass, State, find_pass
from optin_fx.reconstruction import reconstruct
from optin_fx.retrace import retrace


@dataclass(frozen=True)
class RewriteReconstruct(Compensation, Pass):
    """Slice, then regress what the dense program needs on the sliced program's inputs, layer by layer, front to back.

    Solves `min E|y - V x - b|^2 + lam |V - W_S|^2` per layer (a ridge pulled to the old weights; with exact inputs it is
    CORP's affine compensation, arXiv 2602.05243, and K-prune's refit when the target is the residual stream). The ridge is chosen
    on held-out batches, and so is whether to refit at all. Attention logits whose query-key dims went are made what they were by
    new weights of the queries' (or keys') projection, see `optin_fx.logits`. Label-free. Cost: one forward of each program, one
    Cholesky factorisation per candidate ridge and consumer; one backward more where rows are weighed by gradients.

    Attributes:
        level, target, layers, mode, rows_by, floor, norms, logits, ratios, held_out, rows: see `Compensation`.
    """

    reads: ClassVar[tuple[str, ...]] = ("program", "plan", "data")
    writes: ClassVar[tuple[str, ...]] = ("small",)

    def apply(self, state: State) -> State:
        """Slice and refit the program of a state."""
        assert state.plan is not None
        batches = batches_of(state.program, state.data, needed_for=self.name())
        module, report = reconstruct(state.program, state.plan, batches, self)
        refit = {"refit": [str(item) for item in report], "refitted": sum(item.level != "none" for item in report)}
        facts = {"plan": state.plan.fingerprint, **state.plan.provenance, **refit}
        return replace(state, small=retrace(module, state.program, provenance=facts))


def find_compensation(text: str, asked_by: str) -> RewriteReconstruct:
    """The `rewrite-reconstruct` that another pass tries plans with, from its text form.

    Args:
        asked_by: the pass and its option, for the message.

    Raises:
        PipelineError: no such pass or option, or it does not compensate.
    """
    found = find_pass(text, "rewrite")
    if not isinstance(found, RewriteReconstruct):
        raise PipelineError(f"{text!r} does not compensate", at=asked_by, fix="rewrite-reconstruct")
    return found

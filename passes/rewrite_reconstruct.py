"""The rewrite with compensation: slice, and refit every consumer of a pruned group in closed form."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from optin_fx.data import batches_of
from optin_fx.pipeline import Pass, State
from optin_fx.reconstruction import Options, reconstruct
from optin_fx.retrace import retrace


@dataclass(frozen=True)
class RewriteReconstruct(Pass):
    """Slice, then regress the dense program's outputs on the sliced program's inputs, consumer by consumer, front to back.

    Solves `min E|y - V x - b|^2 + lam |V - W_S|^2` per consumer (a ridge pulled to the old weights; with exact inputs it is
    CORP's affine compensation, arXiv 2602.05243, and K-prune's refit when the target is the residual stream). The ridge is chosen
    on held-out batches, and so is whether to refit at all. Label-free. Cost: one forward of each program, one
    Cholesky factorisation per candidate ridge and consumer.

    Attributes:
        level: "affine" (weights and bias), "bias", or "none".
        target: "residual" corrects the stream that the consumer is added to, "output" only its own output.
        sequential: read the inputs of the sliced program, which carry earlier errors; False reads the dense program's.
        ratios: candidate ridges, as shares of the mean input variance.
        held_out: share of the batches (or of the rows of an only batch) on which the ridge is chosen.
        rows: at most so many rows per batch enter a refit.
    """

    level: str = "affine"
    target: str = "residual"
    sequential: bool = True
    ratios: tuple[float, ...] = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
    held_out: float = 0.25
    rows: int = 4096

    reads: ClassVar[tuple[str, ...]] = ("program", "plan", "data")
    writes: ClassVar[tuple[str, ...]] = ("small",)

    def __post_init__(self) -> None:
        if self.level not in ("affine", "bias", "none") or self.target not in ("residual", "output"):
            raise ValueError("level is one of affine, bias, none; target is residual or output")

    def apply(self, state: State) -> State:
        """Slice and refit the program of a state."""
        assert state.plan is not None
        batches = batches_of(state.program, state.data, needed_for=self.name())
        options = Options(self.level, self.target, self.sequential, self.ratios, self.held_out, self.rows)
        module, report = reconstruct(state.program, state.plan, batches, options)
        facts = {"plan": state.plan.fingerprint, **state.plan.provenance, "refit": [str(item) for item in report]}
        return replace(state, small=retrace(module, state.program, provenance=facts))

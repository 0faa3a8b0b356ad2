"""Activation: how large, or how varied, what a unit hands on is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch

from optin_fx.data import Batch
from optin_fx.pipeline import ScorePass
from optin_fx.program import Program
from optin_fx.statistics import ConsumerMoments, collect


@dataclass(frozen=True)
class ScoreActivation(ScorePass):
    """`I_u = sum over consumers and positions of u of m(x)`, with m one of E|x|, E x^2, Var x.

    x is what a consumer reads at the unit's positions, over all tokens that are not padding. "variance" is what removing the unit costs a
    consumer that may move the unit's mean into its bias (VBP, arXiv 2507.12988; FLAP, AAAI 2024), up to the consumer's weights, with
    which `weighted` multiplies. Label-free. Cost: one forward pass. Assumes comparable scales within a group only.

    Attributes:
        moment: "mean" (of the magnitude), "energy" (mean square) or "variance".
        weighted: times the squared norm of the consumer's weights for the position.
    """

    moment: str = "mean"
    weighted: bool = False
    normalise: str = field(default="mean", kw_only=True)

    additive: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.moment not in ("mean", "energy", "variance"):
            raise ValueError(f"moment is one of mean, energy, variance; not {self.moment!r}")

    def score(self, program: Program, batches: Sequence[Batch]) -> dict[str, torch.Tensor]:
        """Moments of one forward pass."""

        def value(moments: ConsumerMoments) -> torch.Tensor:
            found = {"mean": moments.absolute, "energy": moments.square, "variance": moments.variance}[self.moment]
            return found * moments.weight if self.weighted else found

        return collect(program, batches).per_unit(value)

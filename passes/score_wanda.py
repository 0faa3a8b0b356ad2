"""Wanda, for units: weights times activations (Sun et al., ICLR 2024, and its structured forms)."""

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
class ScoreWanda(ScorePass):
    """`I_u = sum over consumers and positions j of u of |W_:j|^p (E x_j^2)^(p/2)`, with W the consumer's weights.

    For p = 2 this is the mean squared change of the consumers' outputs if unit u alone is removed and its inputs are uncorrelated; for
    p = 1 it is nearer to the paper, which adds |w| |x| over single weights. Label-free. Cost: one forward pass. Where two activations
    meet (queries and keys), the mean square of the other one stands for the weights.

    Attributes:
        p: 1 or 2.
    """

    p: int = 2
    normalise: str = field(default="mean", kw_only=True)

    additive: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.p not in (1, 2):
            raise ValueError(f"p is 1 or 2, not {self.p!r}")

    def score(self, program: Program, batches: Sequence[Batch]) -> dict[str, torch.Tensor]:
        """Moments of one forward pass, times weights."""

        def value(moments: ConsumerMoments) -> torch.Tensor:
            return (moments.square * moments.weight) ** (self.p / 2)

        return collect(program, batches).per_unit(value)

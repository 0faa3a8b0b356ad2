"""Random scores: the floor that every criterion must beat."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from optin_fx.data import Batch
from optin_fx.groups import group
from optin_fx.pipeline import ScorePass
from optin_fx.program import Program


@dataclass(frozen=True)
class ScoreRandom(ScorePass):
    """Independent uniform scores. Needs no data.

    Attributes:
        seed: of the draw.
    """

    seed: int = 0

    needs_data: ClassVar[bool] = False
    additive: ClassVar[bool] = False

    def score(self, program: Program, batches: Sequence[Batch]) -> dict[str, torch.Tensor]:
        """One draw per unit."""
        generator = torch.Generator().manual_seed(self.seed)
        return {g.name: torch.rand(g.extent, generator=generator) for g in group(program).free}

"""How the directions of vectors change, without subtracting two nearly equal ones."""

from __future__ import annotations

from dataclasses import dataclass

import torch

TINY = 1e-12
"""Least length of a vector that has a direction."""


@dataclass(frozen=True)
class Directions:
    """Vectors along the last dim, to compare changed ones with.

    Attributes:
        units: the vectors over their lengths.
        lengths: with a last dim of one.
    """

    units: torch.Tensor
    lengths: torch.Tensor

    @classmethod
    def of(cls, vectors: torch.Tensor) -> Directions:
        """Of `[..., features]`."""
        lengths = vectors.norm(dim=-1, keepdim=True).clamp_min(TINY)
        return cls(vectors / lengths, lengths)

    def change(self, change: torch.Tensor) -> torch.Tensor:
        """`(x + d) / |x + d| - x / |x|`.

        `|x + d|^2 - |x|^2 = 2 x d + d d` gives the new length, and what d leaves of the old direction is subtracted once.
        """
        longer = 2 * self.lengths * (self.units * change).sum(-1, keepdim=True) + change.square().sum(-1, keepdim=True)
        new = (self.lengths.square() + longer).clamp_min(TINY**2).sqrt()
        return (change / new).addcmul_(self.units, longer / (self.lengths + new) / new, value=-1)

"""How far an engine's outputs are from the program's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

# Largest difference relative to the largest entry of the same output. Seen on eleven model families: 4e-6 (fp32), 2e-2 (fp16).
TOLERANCE = {"fp32": 1e-3, "tf32": 2e-2, "fp16": 5e-2, "bf16": 2e-1}


@dataclass(frozen=True)
class Closeness:
    """Differences over all outputs of one call.

    Attributes:
        max_abs: largest absolute difference of a floating-point entry.
        max_rel: largest absolute difference, divided by the largest magnitude in the same output.
        unequal: fraction of differing entries among integer and boolean outputs.
    """

    max_abs: float
    max_rel: float
    unequal: float = 0.0

    def within(self, tolerance: float) -> bool:
        return self.max_rel <= tolerance and self.unequal <= tolerance

    def __str__(self) -> str:
        text = f"max abs {self.max_abs:.1e}, max rel {self.max_rel:.1e}"
        return f"{text}, {self.unequal:.1%} of integers differ" if self.unequal else text


def closeness(found: Sequence[torch.Tensor], expected: Sequence[torch.Tensor]) -> Closeness:
    """Compare outputs entry by entry, in float64; equal infinities and NaNs count as equal."""
    max_abs = max_rel = 0.0
    differing = integers = 0
    for ours, theirs in zip(found, expected, strict=True):
        ours, theirs = ours.detach().cpu(), theirs.detach().cpu()
        if ours.shape != theirs.shape:
            return Closeness(float("inf"), float("inf"), 1.0)
        if not theirs.dtype.is_floating_point:
            differing += int((ours != theirs).sum())
            integers += theirs.numel()
            continue
        if not theirs.numel():
            continue
        ours, theirs = ours.double(), theirs.double()
        same = (ours == theirs) | (ours.isnan() & theirs.isnan())
        gap = torch.where(same, 0.0, (ours - theirs).abs()).nan_to_num(nan=float("inf"), posinf=float("inf")).max().item()
        scale = torch.where(theirs.isfinite(), theirs.abs(), 0.0).max().item()
        max_abs = max(max_abs, gap)
        max_rel = max(max_rel, gap / scale if scale else gap)
    return Closeness(max_abs, max_rel, differing / integers if integers else 0.0)

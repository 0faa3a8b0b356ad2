"""Which unit of a group a position along a dim belongs to."""

from __future__ import annotations

import torch

from optin_fx.dims import Axis


def unit_of_position(axis: Axis, leaf: Axis) -> torch.Tensor:
    """For every position along a dim the unit of `leaf` that it belongs to, or -1. Shape [size], int64."""
    root = axis.root()
    if root is leaf:
        return torch.arange(root.size)
    if not root.sign:
        return torch.full((root.size,), -1, dtype=torch.long)
    parts = [unit_of_position(part, leaf) for part in root.parts]
    if root.sign == "+":
        return torch.cat(parts)
    whole = parts[0]
    for inner in parts[1:]:  # of two factors with the same leaf the outer one names the unit
        outer = whole[:, None].expand(-1, len(inner))
        whole = torch.where(outer >= 0, outer, inner[None, :].expand(len(whole), -1)).flatten()
    return whole

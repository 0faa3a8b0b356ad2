"""Magnitude: the norm of all weights that belong to a unit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from optin_fx.analysis import analyse
from optin_fx.attributes import storage_key
from optin_fx.data import Batch
from optin_fx.dims import leaves
from optin_fx.groups import group, leaf_names
from optin_fx.pipeline import ScorePass
from optin_fx.program import Program
from optin_fx.units import unit_of_position


@dataclass(frozen=True)
class ScoreMagnitude(ScorePass):
    """`I_u = (sum over all weights w of unit u of |w|^p)^(1/p)`, divided by the group's mean. Needs no data.

    The weights of a unit are its slices of every parameter that contraction ops read, over all coupled
    layers (group-aggregated, as in DepGraph). Cost: one pass over the weights. Assumes that scale is comparable within a
    group only, hence the division.

    Attributes:
        p: 1 or 2.
    """

    p: int = 2

    needs_data: ClassVar[bool] = False
    additive: ClassVar[bool] = False

    def score(self, program: Program, batches: Sequence[Batch]) -> dict[str, torch.Tensor]:
        """Sum |w|^p per unit over all members of two dims or more."""
        analysis = analyse(program)
        names, free = leaf_names(analysis), {g.name: g for g in group(program).free}
        sums = {g.name: torch.zeros(g.extent, dtype=torch.float64) for g in free.values()}
        seen: set[object] = set()
        for node in program.graph_module.graph.nodes:
            tensor = program.tensors.get(str(node.target)) if node.op == "get_attr" else None
            if not isinstance(tensor, nn.Parameter) or tensor.dim() < 2 or storage_key(tensor) in seen:
                continue
            seen.add(storage_key(tensor))
            powers = tensor.detach().double().abs() ** self.p
            for dim, axis in enumerate(analysis.axes[node.name]):
                along = None
                for leaf in dict.fromkeys(leaves(axis)):
                    if names.get(leaf) not in free:
                        continue
                    if along is None:
                        along = powers.sum(dim=[d for d in range(powers.dim()) if d != dim])
                    units = unit_of_position(axis, leaf)
                    sums[names[leaf]].index_add_(0, units[units >= 0], along[units >= 0].cpu())
        found = {name: total ** (1 / self.p) for name, total in sums.items()}
        return {name: value / value.mean().clamp_min(1e-30) for name, value in found.items()}

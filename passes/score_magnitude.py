"""Magnitude: the norm of all weights that belong to a unit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import nn

from optin_fx.analysis import analyse
from optin_fx.attributes import storage_key
from optin_fx.data import Batch
from optin_fx.dims import leaves
from optin_fx.groups import group, leaf_names
from optin_fx.offload import read_weight
from optin_fx.pipeline import ScorePass
from optin_fx.program import Program
from optin_fx.units import unit_of_position

_TOGETHER: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "sum": lambda norms: norms.sum(0),
    "mean": lambda norms: norms.mean(0),
    "max": lambda norms: norms.amax(0),
    "product": lambda norms: norms.clamp_min(1e-30).log().mean(0).exp(),
}


@dataclass(frozen=True)
class ScoreMagnitude(ScorePass):
    """`I_u = (sum over all weights w of unit u of |w|^p)^(1/p)`, divided by the group's mean. Needs no data.

    The weights of a unit are its slices of every parameter of two dims or more, over all coupled layers
    (group-aggregated, as in DepGraph, CVPR 2023). Cost: one pass over the weights. Assumes that scale is comparable within a
    group only, hence the division.

    Attributes:
        p: 1 or 2.
        aggregate: "norm" is one norm over all the unit's weights; "sum", "mean", "max" and "product" (geometric mean) take a norm for
            each tied parameter first and put these together.
    """

    p: int = 2
    aggregate: str = "norm"
    normalise: str = field(default="mean", kw_only=True)

    needs_data: ClassVar[bool] = False
    additive: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.p not in (1, 2):
            raise ValueError(f"p is 1 or 2, not {self.p!r}")
        if self.aggregate not in ("norm", *_TOGETHER):
            raise ValueError(f"aggregate is one of norm, {', '.join(_TOGETHER)}; not {self.aggregate!r}")

    def score(self, program: Program, batches: Sequence[Batch]) -> dict[str, torch.Tensor]:
        """Sum |w|^p per unit and parameter, then put the parameters together."""
        sums: dict[str, list[torch.Tensor]] = {g.name: [] for g in group(program).free}
        for name, powers in self._powers(program):
            sums[name].append(powers)
        if self.aggregate == "norm":
            return {name: torch.stack(parts).sum(0) ** (1 / self.p) for name, parts in sums.items()}
        return {name: _TOGETHER[self.aggregate](torch.stack(parts) ** (1 / self.p)) for name, parts in sums.items()}

    def _powers(self, program: Program) -> Iterator[tuple[str, torch.Tensor]]:
        """(group, sum of |w|^p per unit) for every dim of every parameter that a prunable group occurs in."""
        analysis = analyse(program)
        names, extents = leaf_names(analysis), {g.name: g.extent for g in group(program).free}
        seen: set[object] = set()
        for node in program.graph_module.graph.nodes:
            tensor = program.tensors.get(str(node.target)) if node.op == "get_attr" else None
            if not isinstance(tensor, nn.Parameter) or tensor.dim() < 2 or storage_key(tensor) in seen:
                continue
            seen.add(storage_key(tensor))
            powers = read_weight(program, str(node.target)).detach().double().abs() ** self.p
            for dim, axis in enumerate(analysis.axes[node.name]):
                own = [leaf for leaf in dict.fromkeys(leaves(axis)) if names.get(leaf) in extents]
                along = powers.sum(dim=[d for d in range(powers.dim()) if d != dim]).cpu() if own else powers
                for leaf in own:
                    units = unit_of_position(axis, leaf)
                    total = torch.zeros(extents[names[leaf]], dtype=torch.float64)
                    yield names[leaf], total.index_add_(0, units[units >= 0], along[units >= 0])

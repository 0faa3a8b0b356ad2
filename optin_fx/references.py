"""Tensors whose values speak of units: positions along an axis, as a router's choice of experts is, and counts of such positions.

Where units of an axis go, positions along it become those among the units that stay. That is harmless as long as every op that reads
positions looks them up along the same axis, which then shrinks too: `topk` tells positions, `index`, `gather` and `one_hot` are told
them, and in between they are only moved about. Whoever computes with them in any other way pins the axis.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from optin_fx.applied import Applied
from optin_fx.dims import SYMBOLIC, Axis, Pin, leaves, pin, unify
from optin_fx.rulebook import COUNTS, POSITIONS, Call, Line, is_left

aten = torch.ops.aten

_MOVES = {
    aten.view.default, aten.reshape.default, aten._unsafe_view.default, aten.flatten.using_ints, aten.unflatten.int, aten.transpose.int,
    aten.permute.default, aten.t.default, aten.expand.default, aten.unsqueeze.default, aten.squeeze.dim, aten.squeeze.default,
    aten.contiguous.default, aten.clone.default, aten.alias.default, aten.detach.default, aten.to.dtype, aten.to.device,
    aten.to.dtype_layout, aten._to_copy.default, aten.slice.Tensor, aten.select.int, aten.index.Tensor, aten.repeat_interleave.self_int,
    aten.lift_fresh_copy.default,
}  # fmt: skip
_SORTS = {aten.sort.default, aten.sort.stable}  # only the first result holds the entries
_CARRIERS = {POSITIONS: _MOVES | _SORTS, COUNTS: _MOVES | {aten.cumsum.default}}


@dataclass(frozen=True, slots=True)
class Reference:
    """What a tensor's values speak of: `kind` of the units of `axis`; `by` is the node that made them."""

    kind: str
    axis: Axis
    by: str


@dataclass
class References:
    """The references in a graph, gathered while it is walked.

    Attributes:
        of: node name to what its values speak of; a list for several results.
    """

    of: dict[str, Any] = field(default_factory=dict)
    _held: dict[str, list[tuple[Axis, Pin]]] = field(default_factory=dict)
    _read: set[str] = field(default_factory=set)

    def held(self, call: Call, line: Line) -> frozenset[str]:
        """Factors that the line pins, and that are not to be pinned: positions along them are told, or come in."""
        told = {name for k, (kind, name) in line.told.items() if (found := self.told(call, k)) is not None and found.kind == kind}
        return frozenset(told | {name for kind, name in line.tells.values() if kind == POSITIONS})

    def follow(self, applied: Applied) -> None:
        """Tie the axes that positions are of with those that they are looked up along, and hand references on."""
        call, line = applied.call, applied.line
        name = call.node.name
        for k, operand in enumerate(call.operands):
            found = self.told(call, k)
            if found is None or (k < len(line.operands) and line.operands[k] is None):
                continue
            kind, factor = line.told.get(k, ("", ""))
            if kind == found.kind:
                self._tie(found, applied.factors[factor], Pin(line.why, name))
            elif not (k == 0 and operand.index is None and call.op in _CARRIERS[found.kind]):
                pin(found.axis, Pin(f"its units' {found.kind} are computed with ({call.op})", name))
        first = self.told(call, 0) if call.operands else None
        results: list[Reference | None] = [None] * len(call.results)
        if first is not None and call.op in _CARRIERS[first.kind]:
            results[0] = first
        for k, (kind, factor) in line.tells.items():
            results[k] = Reference(kind, applied.factors[factor], name)
            if kind == POSITIONS and not is_left(call.node, k):
                self._held.setdefault(name, []).append((applied.factors[factor], Pin(line.why, name, code=line.code)))
        if any(results):
            self.of[name] = results[0] if len(call.results) == 1 else results

    def pick(self, name: str, source: str, index: int) -> None:
        """`name` is one of the results of `source`."""
        found = self.of.get(source)
        if isinstance(found, list) and found[index] is not None:
            self.of[name] = found[index]

    def counts(self, name: str) -> bool:
        """Whether a node's values are counts of units."""
        found = self.of.get(name)
        return isinstance(found, Reference) and found.kind == COUNTS

    def refuse(self, node: fx.Node, reason: str) -> None:
        """A node that nothing is known of reads references: what they speak of stays."""
        for value in node.all_input_nodes:
            found = self.of.get(value.name)
            for reference in found if isinstance(found, list) else [found]:
                if reference is not None:
                    pin(reference.axis, Pin(reason, node.name))

    def settle(self) -> None:
        """Positions that nothing looks up prove nothing: their axes are pinned after all."""
        for name, axes in self._held.items():
            if name not in self._read:
                for axis, why in axes:
                    pin(axis, why)

    def told(self, call: Call, number: int) -> Reference | None:
        """What the values of an operand speak of."""
        if number >= len(call.operands):
            return None
        found = self.of.get(call.operands[number].node.name)
        return found if isinstance(found, Reference) else None

    def _tie(self, found: Reference, axis: Axis, why: Pin) -> None:
        self._read.add(found.by)
        if found.axis.root().size == axis.root().size < SYMBOLIC:
            unify(found.axis, axis, why)
            return
        for one in (found.axis, axis):
            pin(one, why)


def least_units(applied: Mapping[str, Applied]) -> dict[Axis, int]:
    """Fewest units that a choice among them can do with, by leaf. Of a product, each factor alone is held to it."""
    found: dict[Axis, int] = {}
    for one in applied.values():
        for name, count in one.line.least.items():
            for leaf in leaves(one.factors[name]):
                found[leaf] = max(found.get(leaf, 1), min(count, leaf.size))
    return found

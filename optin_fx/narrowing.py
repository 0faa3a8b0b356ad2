"""Rows that nothing reads are not computed: a selection moves up through the graph, past every op that works row by row.

A classifier on top of an encoder reads one token of the last layer (`x[:, 0]`), and still the whole layer is computed for all tokens: its
queries, its attention's output, its feed-forward network. Only its keys and values need all. What a selection may be moved past is what
the rules say (`optin_fx.rulebook`): for a free factor of an op, slicing its operands is slicing its result. So it is exact, it needs no
data, and it works for whatever has rules.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from optin_fx.analysis import Analysis, analyse
from optin_fx.applied import Applied, written_out
from optin_fx.arguments import argument, set_argument
from optin_fx.costs import cost
from optin_fx.dims import SYMBOLIC
from optin_fx.groups import group
from optin_fx.linearity import mutated, sharing_memory
from optin_fx.program import Program
from optin_fx.retrace import retrace
from optin_fx.rewriting import editable, resize_call, views_may_copy
from optin_fx.rulebook import Resized
from optin_fx.rules.shaping import Scaled

aten = torch.ops.aten

MOST = 0.5
"""A selection of more than this share of the rows stays where it is: it would be a copy for little."""


def narrow(program: Program) -> Program:
    """A program that computes the same, without the rows that nothing reads; the program itself where that saves no contraction.

    Made once and kept with the program. It has the same groups, by the same names; plans and scores are the given program's.
    """
    found = program.__dict__.get("_narrowed")
    if found is None:
        found = program.__dict__["_narrowed"] = _narrowed(program)
        found.__dict__["_narrowed"] = found
    return found


def _narrowed(program: Program) -> Program:
    analysis, module = analyse(program), editable(program)
    moving = _Moving(analysis)
    for node in reversed(list(module.graph.nodes)):
        moving.past(node)
    if not moving.moved:
        return program
    module.graph.eliminate_dead_code()
    views_may_copy(module)
    module.graph.lint()
    module.recompile()
    found = retrace(module, program, provenance={"narrowed": True})
    found.allow = program.allow
    extents = [{g.name: g.extent for g in group(one).free} for one in (program, found)]
    saves = cost(found).macs < cost(program).macs
    return found if saves and extents[0] == extents[1] else program


@dataclass(frozen=True)
class _Rows:
    """A range of a dim."""

    dim: int
    begin: int
    end: int

    @property
    def count(self) -> int:
        return self.end - self.begin


class _Moving:
    """Selections of a graph on their way up. Nodes are to be visited from the last one to the first."""

    def __init__(self, analysis: Analysis) -> None:
        self.analysis = analysis
        self.batch = {axis.root() for axis in analysis.batch}
        self.moved = 0
        self._ranges: dict[tuple[fx.Node, int, int, int], fx.Node] = {}
        self._there: set[fx.Node] = set()

    def past(self, node: fx.Node) -> None:
        """Move what selects from a node's result to its operands, if all its users select, and its rule allows it."""
        rows = self._read(node)
        if rows is None or any(mutated(other) is not None for other in sharing_memory(node)):
            return
        shape = self.analysis.sizes.shape_of(node)
        if not (self._past_range(node, rows) or self._past_op(node, rows)):
            return
        for user in list(node.users):
            if (selected := self._selected(user, shape)) is not None:
                _shift(user, selected, rows)
        self.moved += 1

    def _past_range(self, node: fx.Node, rows: _Rows) -> bool:
        """Where rows of a range are selected, select them at once."""
        source = node.args[0] if node.target is aten.slice.Tensor else None
        if not isinstance(source, fx.Node):
            return False
        own = self._selected(node, self.analysis.sizes.shape_of(source))
        if own is None or own.dim != rows.dim:
            return False
        node.args = (source, rows.dim, own.begin + rows.begin, own.begin + rows.end)
        return True

    def _past_op(self, node: fx.Node, rows: _Rows) -> bool:
        """Select from the operands in place of the result, if the op's rule says that it is the same."""
        applied = self.analysis.applied.get(node.name)
        places = _operands(applied, rows) if applied else {}
        if applied is None or not places:
            return False
        if node.target is aten.scaled_dot_product_attention.default and applied.call["is_causal"] and rows.begin > 0:
            return False  # which keys a query sees is told by its place
        self._resize(node, applied, rows, places)
        for number, dims in places.items():
            operand = applied.call.operands[number]
            value = argument(node, operand.name, operand.index)
            for dim in dims:
                value = self._range(value, dim, rows)
            set_argument(node, operand.name, operand.index, value)
        return True

    def _read(self, node: fx.Node) -> _Rows | None:
        """The rows of a result that are read, if they are few and along one dim."""
        shape, axes = self.analysis.sizes.shape_of(node), self.analysis.axes.get(node.name)
        if node.op != "call_function" or not isinstance(shape, tuple) or not axes:
            return None
        users = [user for user in node.users if not _is_size(user)]
        found = [rows for user in users if (rows := self._selected(user, shape)) is not None]
        if not found or len(found) < len(users) or len({rows.dim for rows in found}) > 1:
            return None
        rows = _Rows(found[0].dim, min(one.begin for one in found), max(one.end for one in found))
        counted = any(user.args[1] == rows.dim for user in node.users if _is_size(user))
        if counted or axes[rows.dim].root() in self.batch or rows.count > MOST * shape[rows.dim]:
            return None
        return rows

    def _selected(self, user: fx.Node, shape: tuple[int, ...]) -> _Rows | None:
        """The rows of a value that a user reads, if it is a selection by numbers."""
        if user.target not in (aten.select.int, aten.slice.Tensor):
            return None
        dim, *numbers = user.args[1:] or (0,)
        if not isinstance(dim, int):
            return None
        dim %= len(shape)
        size = shape[dim]
        if user.target is aten.select.int:
            begin = _from_front(numbers[0], size)
            return None if begin is None else _Rows(dim, begin, begin + 1)
        first, last, step = list(numbers) + [None, None, 1][len(numbers) :]
        begin, end = _from_front(first or 0, size), _from_front(size if last is None else last, size)
        if begin is None or end is None or step != 1 or (size >= SYMBOLIC and user not in self._there):
            return None  # where the length is dynamic, a range may end early; but not one that a row's number has shown to be there
        begin, end = max(begin, 0), min(end, size)
        return _Rows(dim, begin, end) if begin < end else None

    def _range(self, value: fx.Node, dim: int, rows: _Rows) -> fx.Node:
        """`value[..., begin:end, ...]`, made once for all that read it."""
        key = (value, dim, rows.begin, rows.end)
        if key not in self._ranges:
            with value.graph.inserting_after(value):
                self._ranges[key] = value.graph.call_function(aten.slice.Tensor, (value, dim, rows.begin, rows.end))
            self._there.add(self._ranges[key])
        return self._ranges[key]

    def _resize(self, node: fx.Node, applied: Applied, rows: _Rows, places: Mapping[int, list[int]]) -> None:
        """Write the new extent where the call has the old one in its arguments."""
        call = applied.call
        operands = [list(operand.shape) for operand in call.operands]
        for number, dims in places.items():
            for dim in dims:
                operands[number][dim] = rows.count
        result = list(call.results[0])
        result[rows.dim] = rows.count
        name = _factor(applied, rows.dim)
        factors = {other: axis.root().size for other, axis in applied.factors.items()} | {name: rows.count}
        new = Resized(tuple(map(tuple, operands)), (tuple(result),), factors)
        nodes = {other.name: other for other in node.graph.nodes}
        # the one extent that changes is a number now, also where the old one is worked out in the graph
        resize_call(nodes, node, applied, new, lambda v: rows.count if isinstance(v, Scaled) else v)


def _operands(applied: Applied, rows: _Rows) -> dict[int, list[int]]:
    """By number of an operand the dims that are narrowed with a result's; none where the op does not work row by row."""
    line, call = applied.line, applied.call
    name = _factor(applied, rows.dim)
    if len(call.results) != 1 or not name or name in line.pinned | line.summed | line.chosen | line.frozen:
        return {}
    found: dict[int, list[int]] = {}
    for number, (dims, operand) in enumerate(zip(applied.operands, call.operands, strict=False)):
        for dim, term in enumerate(dims or ()):
            if name not in term.names():
                continue
            if term.sign:
                return {}
            if operand.shape[dim] == call.results[0][rows.dim]:
                found.setdefault(number, []).append(dim)
            elif operand.shape[dim] != 1:
                return {}
        if number in found and line.macs and operand.node.op == "get_attr":
            return {}  # outputs of a layer that are not read: its weights would be sliced at every call
    return found


def _factor(applied: Applied, dim: int) -> str:
    """The factor that a result's dim is; empty where it is a product, a sum or a number."""
    terms = written_out(applied.line.results[0], len(applied.call.results[0])) or ()
    return terms[dim].name if not terms[dim].sign else ""


def _shift(user: fx.Node, selected: _Rows, rows: _Rows) -> None:
    """Let a selection count from the first row that is still there."""
    source, begin = user.args[0], selected.begin - rows.begin
    assert isinstance(source, fx.Node)
    if user.target is aten.select.int:
        user.args = (source, rows.dim, begin)
    elif selected == rows:
        user.replace_all_uses_with(source)
        user.graph.erase_node(user)
    else:
        user.args = (source, rows.dim, begin, begin + selected.count)


def _is_size(user: fx.Node) -> bool:
    return user.target is aten.sym_size.int


def _from_front(place: Any, size: int) -> int | None:
    """A number of a row counted from the front; None where it is no number, or counts from an end that is not known."""
    if not isinstance(place, int) or (place < 0 and size >= SYMBOLIC):
        return None
    return place + size if place < 0 else place

"""What gating a group changes behind it, as differences from a dense run.

The dense run is done once and kept. For a gate, only nodes that its change reaches are executed, and on the change alone where an op
is linear in it: `W (x + d) - W x = W d`; a gated-off unit of a linear layer costs its own columns. Everything else is
`f(x + d) - f(x)` with the kept `f(x)`. The values are those of running the gated model and subtracting, but rounding is
relative to the change and not to the activations, so that a small unit is measured as exactly as a large one, and linear layers
may multiply in bfloat16 (`precision="bf16"`): its 2^-9 is then a relative error of the change.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

from optin_fx.analysis import Consumer, analyse
from optin_fx.arguments import read, write
from optin_fx.data import Batch
from optin_fx.interpreter import Runner, flat_inputs, readers_by_node
from optin_fx.linearity import BIAS, FRESH, JOINS, Carries, carries, mutated, op_name, sharing_memory, without_writing
from optin_fx.products import Products
from optin_fx.program import Program


@dataclass(frozen=True)
class New:
    """A value that took the place of one that cannot be subtracted from (integers, truth values)."""

    value: Any


@dataclass(frozen=True)
class Changes:
    """What a gate changed: by node name where it was tapped, and by index of the flat outputs. What it did not reach is left out."""

    taps: dict[str, torch.Tensor]
    outputs: dict[int, torch.Tensor]


class Suffix:
    """A dense run of a batch, and changes from it.

    Args:
        program, batch: what is run. taps: names of nodes whose results are wanted.
        precision: "full", or "bf16" for the products of changes with weights.
    """

    def __init__(self, program: Program, batch: Batch, taps: Sequence[str] = (), precision: str = "full") -> None:
        self.program, self.wanted, self.precision = program, frozenset(taps), precision
        self.runner = _Functional(program)
        self.nodes = list(program.graph_module.graph.nodes)
        self.last = {value: i for i, node in enumerate(self.nodes) for value in node.all_input_nodes}
        self.carries = {node: carries(node) if _floats(node) else Carries.NOTHING for node in self.nodes}
        self.values: dict[fx.Node, Any] = {}
        self.products = Products(precision)
        floats = [t.dtype for t in program.tensors.values() if t.is_floating_point()]
        self.dtype = floats[0] if floats else torch.get_default_dtype()
        flat = iter(flat_inputs(program, batch))
        self.runner.env = self.values
        with torch.no_grad():
            for i, node in enumerate(self.nodes):
                self.values[node] = next(flat) if node.op == "placeholder" else self.runner.run_node(node)
                for value in {node, *node.all_input_nodes}:
                    if self.last.get(value, -1) <= i and not self._keep(value):
                        self.values.pop(value, None)
        self.tapped = {node.name: self.values[node] for node in self.nodes if node.name in self.wanted}
        found = self.values[self.nodes[-1]]
        self.outputs: list[Any] = list(found) if isinstance(found, (tuple, list)) else [found]

    @property
    def bytes(self) -> int:
        """Memory that the kept values take, weights left out."""
        kept = [value for node, value in self.values.items() if node.op != "get_attr"]
        tensors = [leaf for leaf in pytree.tree_leaves(kept) if isinstance(leaf, torch.Tensor)]
        return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())

    def behind(self, group: str, gate: torch.Tensor, taps: Sequence[str] = ()) -> Changes:
        """What gating a group changes; `gate` is `[batch, extent]`."""
        with torch.no_grad():
            return _Behind(self, group, gate).run(frozenset(taps))

    def _keep(self, node: fx.Node) -> bool:
        """Whether a change may need the dense value: as an operand that stays, or to subtract from."""
        if node.op != "call_function" or node.name in self.wanted or not isinstance(self.values.get(node), torch.Tensor):
            return True
        return not self._carries_alone(node) or any(user.op == "output" or not self._carries_alone(user) for user in node.users)

    def _carries_alone(self, node: fx.Node) -> bool:
        """Whether changes run through a node without its dense value or operands."""
        kind = self.carries[node]
        if node.name in self.runner.table or kind is Carries.NOTHING:
            return False
        if kind is Carries.SUM:  # a part that does not change stands there as zeros, for which its shape is needed
            return _alike(node) and op_name(node) not in JOINS
        return kind is not Carries.PRODUCT or (op_name(node) in BIAS and _weighted(node))


def _weighted(node: fx.Node) -> bool:
    """Whether a linear layer multiplies by a parameter, so that only its input can change."""
    weight = node.args[2 if op_name(node) == "addmm" else 1]
    return isinstance(weight, fx.Node) and weight.op == "get_attr"


def _alike(node: fx.Node) -> bool:
    """Whether all tensors that a node reads have one shape."""
    shapes = [v.meta["val"].shape if isinstance(v.meta.get("val"), torch.Tensor) else v.name for v in node.all_input_nodes]
    return len(set(map(str, shapes))) == 1


def _floats(node: fx.Node) -> bool:
    """Whether all tensors that a node reads are floating."""
    leaves = [leaf for value in node.all_input_nodes for leaf in pytree.tree_leaves(value.meta.get("val"))]
    return all(leaf.is_floating_point() for leaf in leaves if isinstance(leaf, torch.Tensor))


def can_subtract(program: Program) -> bool:
    """Whether what a dense run leaves in memory is what the nodes that units can reach have read.

    A node that writes into a tensor spoils that where it is reached itself, or where a node that is reached has read the memory earlier.
    """
    table, reached = readers_by_node(analyse(program)), set[fx.Node]()
    order = {node: i for i, node in enumerate(program.graph_module.graph.nodes)}
    for node in order:
        if node.name in table or any(value in reached for value in node.all_input_nodes):
            reached.add(node)
    for node in order:
        if mutated(node) is None or without_writing(node) is not None:
            continue
        readers = {user for value in sharing_memory(node) for user in value.users if user in reached}
        if node in reached or any(order[reader] < order[node] for reader in readers):
            return False
    return True


class Rerun:
    """The same for programs that cannot be subtracted node by node: the whole graph runs again for every gate."""

    def __init__(self, program: Program, batch: Batch, taps: Sequence[str] = ()) -> None:
        self.program, self.batch = program, batch
        runner = Runner(program, taps=tuple(taps))
        with torch.no_grad():
            self.outputs = runner(batch)
        self.tapped = runner.tapped

    def behind(self, group: str, gate: torch.Tensor, taps: Sequence[str] = ()) -> Changes:
        """What gating a group changes; `gate` is `[batch, extent]`."""
        runner = Runner(self.program, gates={group: gate}, taps=tuple(taps))
        with torch.no_grad():
            outputs = runner(self.batch)
        changed = {
            i: _minus(new, old) for i, (new, old) in enumerate(zip(outputs, self.outputs, strict=True)) if isinstance(new, torch.Tensor)
        }
        return Changes({name: value - self.tapped[name] for name, value in runner.tapped.items()}, changed)


class _Functional(Runner):
    """Runs writing ops as their counterparts that write nowhere."""

    def run_node(self, n: fx.Node) -> Any:
        self.instead = without_writing(n)
        return super().run_node(n)

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        return super().call_function(self.instead or target, args, kwargs)


class _Behind:
    """One walk over the nodes that a gate reaches."""

    def __init__(self, dense: Suffix, group: str, gate: torch.Tensor) -> None:
        self.dense = dense
        self.runner = Runner(dense.program, gates={group: gate})
        self.runner.env = dense.values
        self.changes: dict[fx.Node, Any] = {}

    def run(self, taps: frozenset[str]) -> Changes:
        tapped: dict[str, torch.Tensor] = {}
        for i, node in enumerate(self.dense.nodes[:-1]):
            change = self._of(node)
            if change is None:
                continue
            self.changes[node] = change
            if node.name in taps:
                tapped[node.name] = change
            for value in node.all_input_nodes:
                if self.dense.last[value] <= i:
                    self.changes.pop(value, None)
        results = self.dense.nodes[-1].args[0]
        flat = results if isinstance(results, (tuple, list)) else (results,)
        return Changes(tapped, {i: self.changes[node] for i, node in enumerate(flat) if node in self.changes})

    def _of(self, node: fx.Node) -> Any:
        """The change of a node's result, or None."""
        consumers = [c for c in self.dense.runner.table.get(node.name, ()) if c.leaves & self.runner.by_leaf.keys()]
        changed = [value for value in node.all_input_nodes if value in self.changes]
        if not consumers and not changed:
            return None
        if consumers:
            return self._gated(node, consumers, changed)
        kind = self.dense.carries[node]
        if kind is Carries.ALONE:
            return self._call(node, *self._fetch(node, self.changes))
        if kind is Carries.SUM:
            return self._sum(node, changed)
        if kind is Carries.PRODUCT and len(changed) == 1 and self._places(node, changed[0]) == 1:
            return self._product(node, changed[0], self.changes[changed[0]])
        return self._difference(node, *self._fetch(node, {value: self._changed(value) for value in changed}))

    def _gated(self, node: fx.Node, consumers: Sequence[Consumer], changed: Sequence[fx.Node]) -> Any:
        """The change of a node that reads the group."""
        operands = self.runner.analysis.applied[node.name].call.operands
        args, kwargs = self._fetch(node, {value: self._changed(value) for value in changed})
        for consumer in consumers:
            operand = operands[consumer.operand]
            value = self.runner.gated(consumer, read(node, args, kwargs, operand.name, operand.index))
            write(node, args, kwargs, operand.name, operand.index, value)
        operand = operands[consumers[0].operand]
        alone = len(consumers) == 1 and set(changed) <= {operand.node} and self._places(node, operand.node) == 1
        if alone and self.dense.carries[node] is Carries.PRODUCT:
            change = read(node, args, kwargs, operand.name, operand.index) - self.dense.values[operand.node]
            return self._product(node, operand.node, change, few=True)
        return self._difference(node, args, kwargs)

    def _product(self, node: fx.Node, operand: fx.Node, change: torch.Tensor, *, few: bool = False) -> Any:
        """An op that is linear in the operand that changed."""
        name = op_name(node)
        if operand is node.args[0] if name == "addmm" else name == "div" and operand is not node.args[0]:
            return self._difference(node, *self._fetch(node, {operand: self._changed(operand)}))
        if name == "linear" and operand is node.args[0] and change.dim() > 1:
            return self._linear(node, change, few=few)
        if change.dtype is torch.bfloat16:  # of an earlier product; other factors are as precise as the model
            change = change.to(self.dense.dtype)
        args, kwargs = self._fetch(node, {operand: change})
        if name == "addmm":
            return self.runner.call_function(torch.ops.aten.mm.default, (args[1], args[2]), {})
        if name in BIAS and BIAS[name] < len(args):
            args[BIAS[name]] = None
        kwargs.pop("bias", None)
        return self._call(node, args, kwargs)

    def _linear(self, node: fx.Node, change: torch.Tensor, *, few: bool) -> torch.Tensor:
        """`d W^T`; if `few`, d is zero but for the columns of a gate, and only these are multiplied."""
        source = node.args[1]
        assert isinstance(source, fx.Node)
        weight: torch.Tensor = self._dense(source).detach()
        if few:
            columns = change.flatten(0, -2).any(0).nonzero().flatten()
            return change[..., columns] @ weight[:, columns].mT
        return self.dense.products(change, weight, source)

    def _sum(self, node: fx.Node, changed: Sequence[fx.Node]) -> Any:
        if op_name(node) in JOINS:
            zeros = {v: torch.zeros_like(self.dense.values[v]) for v in node.all_input_nodes if v not in self.changes}
            return self._call(node, *self._fetch(node, {**zeros, **{v: self.changes[v] for v in changed}}))
        left, right = (v if isinstance(v, fx.Node) else None for v in node.args[:2])
        sign = (-1 if op_name(node).startswith("sub") else 1) * node.kwargs.get("alpha", 1)  # type: ignore[operator]
        parts = [self.changes[left]] if left in self.changes else []
        if right in self.changes:
            parts.append(self.changes[right] if sign == 1 else self.changes[right] * sign)
        total = parts[0] if len(parts) == 1 else parts[0] + parts[1]
        return total if _alike(node) else torch.broadcast_to(total, self._full_shape(node, total))

    def _full_shape(self, node: fx.Node, total: torch.Tensor) -> torch.Size:
        shapes = [value.shape for v in node.all_input_nodes if isinstance(value := self._dense(v), torch.Tensor)]
        return torch.broadcast_shapes(total.shape, *shapes)

    def _difference(self, node: fx.Node, args: list[Any], kwargs: dict[str, Any]) -> Any:
        """`f(x + d) - f(x)`."""
        new = self._call(node, args, kwargs)
        if isinstance(new, torch.Tensor) and new.is_floating_point() and op_name(node) in FRESH:
            return new.sub_(self.dense.values[node])  # no memory but its own is written
        return pytree.tree_map(_minus, new, self.dense.values[node])

    def _changed(self, node: fx.Node) -> Any:
        return pytree.tree_map(_plus, self.changes[node], self._dense(node))

    def _dense(self, node: fx.Node) -> Any:
        value = self.dense.values.get(node)
        return value if self.runner.store is None else self.runner.store.fetched(value)

    def _fetch(self, node: fx.Node, instead: dict[fx.Node, Any]) -> tuple[list[Any], dict[str, Any]]:
        """Arguments of a node's call, dense but for the given ones."""
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: instead[n] if n in instead else self._dense(n))
        return list(args), dict(kwargs)

    def _call(self, node: fx.Node, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        return self.runner.call_function(without_writing(node) or node.target, tuple(args), kwargs)

    def _places(self, node: fx.Node, operand: fx.Node) -> int:
        flat = pytree.tree_leaves((node.args, dict(node.kwargs)), is_leaf=lambda leaf: isinstance(leaf, fx.Node))
        return sum(leaf is operand for leaf in flat)


def _minus(new: Any, old: Any) -> Any:
    return new - old if isinstance(new, torch.Tensor) and new.is_floating_point() else New(new)


def _plus(change: Any, old: Any) -> Any:
    return change.value if isinstance(change, New) else old + change

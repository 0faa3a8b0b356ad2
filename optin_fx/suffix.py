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

from optin_fx.analysis import analyse
from optin_fx.data import Batch
from optin_fx.differences import Walk
from optin_fx.frontier import Functional, InOrder
from optin_fx.interpreter import Runner, readers_by_node
from optin_fx.linearity import BIAS, JOINS, Carries, carries, mutated, op_name, sharing_memory, without_writing
from optin_fx.products import Products
from optin_fx.program import Program
from optin_fx.steps import Step, alike, steps_behind


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
        packed: keep a copy of the weights in the processor's order.
    """

    def __init__(self, program: Program, batch: Batch, taps: Sequence[str] = (), precision: str = "full", packed: bool = False) -> None:
        self.program, self.wanted, self.precision = program, frozenset(taps), precision
        self.runner, dense = Functional(program), InOrder(program, batch)
        self.nodes = dense.nodes
        self.carries = {node: carries(node) if _floats(node) else Carries.NOTHING for node in self.nodes}
        self.steps: dict[tuple[str, frozenset[str]], tuple[Step, ...]] = {}
        self.values: dict[fx.Node, Any] = {}
        self.products = Products(precision, packed)
        floats = [t.dtype for t in program.tensors.values() if t.is_floating_point()]
        self.dtype = floats[0] if floats else torch.get_default_dtype()
        found = dense.run(self.runner, self.values, range(len(self.nodes)), self._keep)
        self.tapped = {node.name: self.values[node] for node in self.nodes if node.name in self.wanted}
        self.outputs: list[Any] = list(found) if isinstance(found, (tuple, list)) else [found]

    @property
    def bytes(self) -> int:
        """Memory that the kept values take, weights left out."""
        kept = [value for node, value in self.values.items() if node.op != "get_attr"]
        tensors = [leaf for leaf in pytree.tree_leaves(kept) if isinstance(leaf, torch.Tensor)]
        return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())

    def behind(self, group: str, gate: torch.Tensor, taps: Sequence[str] = ()) -> Changes:
        """What gating a group changes; `gate` is `[batch, extent]`."""
        self.runner.use({group: gate})
        results = self.nodes[-1].args[0]
        flat = results if isinstance(results, (tuple, list)) else (results,)
        wanted = {node for node in self.nodes if node.name in taps} | {node for node in flat if isinstance(node, fx.Node)}
        with torch.no_grad():
            walk = Walk(self.runner, self.values, self.carries, self.products, self.dtype)
            found = walk.follow(self._steps(group, frozenset(taps)), frozenset(wanted))
        tapped = {node.name: change for node, change in found.items() if node.name in taps}
        return Changes(tapped, {i: found[node] for i, node in enumerate(flat) if node in found})

    def _steps(self, group: str, taps: frozenset[str]) -> tuple[Step, ...]:
        """What the nodes behind a group do, in order."""
        if (group, taps) not in self.steps:
            consumers = {name: [c for c in found if c.leaves & self.runner.by_leaf.keys()] for name, found in self.runner.table.items()}
            read = {name: found for name, found in consumers.items() if found}
            self.steps[group, taps] = steps_behind(self.nodes, read, self.carries, taps)
        return self.steps[group, taps]

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
            return alike(node) and op_name(node) not in JOINS
        return kind is not Carries.PRODUCT or (op_name(node) in BIAS and _weighted(node))


def _weighted(node: fx.Node) -> bool:
    """Whether a linear layer multiplies by a parameter, so that only its input can change."""
    weight = node.args[2 if op_name(node) == "addmm" else 1]
    return isinstance(weight, fx.Node) and weight.op == "get_attr"


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
            i: new - old
            for i, (new, old) in enumerate(zip(outputs, self.outputs, strict=True))
            if isinstance(new, torch.Tensor) and new.is_floating_point()
        }
        return Changes({name: value - self.tapped[name] for name, value in runner.tapped.items()}, changed)

"""Two graphs executed node by node, side by side and batch by batch, up to places where both wait until every batch is there.

A stretch between two such places is run through for one batch after the other, and what later stretches need of each is put away. So
never more than that, and one batch on its way, is in memory, and beyond a limit what waits does so on disk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import fx
from torch._ops import OpOverload

from optin_fx.attributes import attribute
from optin_fx.data import Batch
from optin_fx.interpreter import flat_inputs
from optin_fx.linearity import aliases
from optin_fx.program import Program
from optin_fx.shelf import Shelf, bytes_of

Step = Callable[[], None]


class Stream:
    """A graph and the values of its nodes on the batch that is at hand; each is freed after its last use.

    Inputs belong to the caller, and parameters and views of them are read anew at every use: neither is among the values.
    """

    def __init__(self, module: fx.GraphModule) -> None:
        self.module = module
        self.values: dict[str, Any] = {}
        self.inputs: dict[str, Any] = {}
        self._stored: set[fx.Node] = set()
        last: dict[str, str] = {}
        for node in module.graph.nodes:
            last |= dict.fromkeys((node.name, *(read.name for read in node.all_input_nodes)), node.name)
            if node.op == "get_attr" or (_is_view(node) and self._stored.issuperset(node.all_input_nodes)):
                self._stored.add(node)
        self._dead: dict[str, list[str]] = {}
        for name, reader in last.items():
            self._dead.setdefault(reader, []).append(name)

    def value(self, node: fx.Node) -> Any:
        """The result of a node that has been executed, or a parameter as it is now."""
        if node.op == "get_attr":
            value = attribute(self.module, str(node.target))
            return value.detach() if isinstance(value, torch.Tensor) else value
        if node.op == "placeholder":
            return self.inputs[node.name]
        return self._result(node) if node in self._stored else self.values[node.name]

    def now(self, node: fx.Node) -> Any:
        """The result of a node, worked out for this caller alone if it has not been executed, but what it reads has."""
        return self.values[node.name] if node.name in self.values else self._result(node)

    def execute(self, node: fx.Node) -> None:
        """Run one node."""
        if node.op == "call_function" and node not in self._stored:
            self.values[node.name] = self._result(node)

    def release(self, node: fx.Node) -> None:
        """Free what this node was the last to read."""
        for name in self._dead.get(node.name, ()):
            self.values.pop(name, None)

    def _result(self, node: fx.Node) -> Any:
        args, kwargs = fx.map_arg((node.args, node.kwargs), self.value)
        return node.target(*args, **kwargs)  # type: ignore[operator]


class Lockstep:
    """A dense program's graph and one that was made from it, whose nodes have the names of their partners; a context that puts things away.

    Args:
        sliced: the graph that was made. program: the dense one.
        limit: bytes of values that may be in memory, those of the batch at hand included; what waits beyond it does so on disk.
    """

    def __init__(self, sliced: fx.GraphModule, program: Program, batches: Sequence[Batch], limit: int) -> None:
        self.dense, self.sliced = Stream(program.graph_module), Stream(sliced)
        names = [node.name for node in program.placeholders]
        self._inputs = [dict(zip(names, flat_inputs(program, batch), strict=True)) for batch in batches]
        self._stops: dict[str, int] = {}
        self._steps = list(self._in_order())
        self._done = 0
        self._limit, self._at_hand = limit, 0
        self._shelf = Shelf(limit)
        self._amendments: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {}

    def __enter__(self) -> Lockstep:
        return self

    def __exit__(self, *_: object) -> None:
        self._shelf.close()

    def visit(self, node: fx.Node, see: Callable[[int], None]) -> None:
        """For every batch, run until the sliced graph is about to execute a node, and the dense graph has; then call `see(number)`.

        Nodes must be visited in the sliced graph's order.
        """
        stop = self._stops[node.name]
        for number, inputs in enumerate(self._inputs):
            self.dense.inputs = self.sliced.inputs = inputs
            self.dense.values, self.sliced.values = self._shelf.take(number) if self._done else ({}, {})
            for name, change in self._amendments.items():
                self.sliced.values[name] = change(self.sliced.values[name])
            for step in self._steps[self._done : stop]:
                step()
                if number == 0:
                    self._leave_room_for_values_at_hand()
            see(number)
            self._steps[stop]()  # what only the dense partner read need not wait
            self._shelf.put(number, (self.dense.values, self.sliced.values))
        self.dense.values, self.sliced.values = {}, {}
        self._amendments = {}
        self._done = stop + 1

    def amend(self, node: fx.Node, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Have the sliced graph go on with another result of a node that waits: with `change(result)`, for every batch."""
        self._amendments[node.name] = change

    def _leave_room_for_values_at_hand(self) -> None:
        self._at_hand = max(self._at_hand, bytes_of((self.dense.values, self.sliced.values)))
        self._shelf.limit = self._limit - self._at_hand

    def _in_order(self) -> Iterator[Step]:
        ahead = iter(self.dense.module.graph.nodes)
        partners = {node.name: node for node in self.dense.module.graph.nodes}
        count = 0
        for node in self.sliced.module.graph.nodes:
            steps: list[Step] = []
            partner = partners.get(node.name)
            if partner is not None:
                for own in ahead:  # the dense graph also has what the sliced one lost: removed branches
                    steps.append(partial(self.dense.execute, own))
                    if own is partner:
                        break
                    steps.append(partial(self.dense.release, own))
                self._stops[node.name] = count + len(steps)
                steps.append(partial(self.dense.release, partner))
            steps += [partial(self.sliced.execute, node), partial(self.sliced.release, node)]
            count += len(steps)
            yield from steps


def _is_view(node: fx.Node) -> bool:
    """Whether a node's result lies in the memory of its first argument."""
    return isinstance(node.target, OpOverload) and not node.target._schema.is_mutable and bool(node.args) and aliases(node.target)

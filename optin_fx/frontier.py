"""A dense run that waits at a node: what is gated behind it goes on from there, and what lies before runs once."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import chain
from typing import Any

import torch
from torch import fx

from optin_fx.analysis import Consumer, analyse
from optin_fx.data import Batch
from optin_fx.groups import group, leaf_names
from optin_fx.interpreter import Runner, flat_inputs, readers_by_node
from optin_fx.linearity import mutated, without_writing
from optin_fx.program import Program


class Functional(Runner):
    """Runs writing ops as their counterparts that write nowhere, where there is one."""

    def run_node(self, n: fx.Node) -> Any:
        """Execute a node, or what stands for it."""
        self.instead = without_writing(n)
        return super().run_node(n)

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Call a node's target, or what stands for it."""
        return super().call_function(self.instead or target, args, kwargs)


class InOrder:
    """A program's nodes with the inputs of one batch, to be run a stretch at a time.

    Args:
        program, batch: what is run.
    """

    def __init__(self, program: Program, batch: Batch) -> None:
        self.nodes = list(program.graph_module.graph.nodes)
        placeholders = [node for node in self.nodes if node.op == "placeholder"]
        self.inputs = dict(zip(placeholders, flat_inputs(program, batch), strict=True))
        self.last = {value: i for i, node in enumerate(self.nodes) for value in node.all_input_nodes}

    def run(self, runner: Runner, values: dict[fx.Node, Any], stretch: range, keep: Callable[[fx.Node], bool] = lambda node: False) -> Any:
        """Run the nodes of these numbers on values by node; what no later node reads is dropped, unless it is to be kept.

        Returns what the last of them gives.
        """
        runner.env, result = values, None
        with torch.no_grad():
            for i in stretch:
                node = self.nodes[i]
                values[node] = result = self.inputs[node] if node in self.inputs else runner.run_node(node)
                for value in {node, *node.all_input_nodes}:
                    if self.last.get(value, -1) <= i and not keep(value):
                        values.pop(value, None)
        return result


class Frontier:
    """The dense program's values of one batch before a node, as far as anything from there on reads them.

    Groups are to be taken in the order of their `places`. A program with an op that writes into a tensor and has no counterpart that does
    not is run from its beginning every time, as nobody could tell what that spoils.

    Args:
        program, batch: what is run.
    """

    def __init__(self, program: Program, batch: Batch) -> None:
        self.runner, self.whole = Functional(program), InOrder(program, batch)
        self.moves = all(mutated(node) is None or without_writing(node) is not None for node in self.whole.nodes)
        self.at, self.values = 0, dict[fx.Node, Any]()

    def advance(self, place: int) -> None:
        """Let the dense program run up to the node of that number, which is not run."""
        if self.moves and place > self.at:
            self.whole.run(self.runner, self.values, range(self.at, place))
            self.at = place

    def onward(self, runner: Functional) -> list[Any]:
        """The flat outputs of the program with a runner's gates, all of which act behind this place."""
        outputs = self.whole.run(runner, dict(self.values), range(self.at, len(self.whole.nodes)))
        return list(outputs) if isinstance(outputs, (tuple, list)) else [outputs]


def first_reads(program: Program, readers: Iterable[Consumer]) -> dict[str, int]:
    """By group, the number of the first node among some readers of units; groups that none of them reads are left out."""
    names = leaf_names(analyse(program))
    order = {node.name: i for i, node in enumerate(program.graph_module.graph.nodes)}
    found: dict[str, int] = {}
    for reader in readers:
        for name in {names[leaf] for leaf in reader.leaves if leaf in names}:
            found[name] = min(found.get(name, len(order)), order[reader.node])
    return found


def places(program: Program) -> dict[str, int]:
    """By group, the number of the first node that a gate of it acts on; of groups that nothing reads, that of the output."""
    found = first_reads(program, chain.from_iterable(readers_by_node(analyse(program)).values()))
    output = len(program.graph_module.graph.nodes) - 1
    return {g.name: found.get(g.name, output) for g in group(program).free}

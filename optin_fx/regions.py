"""The part of a program that a group touches, as a program of its own: what grows and shrinks with the group's width."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from optin_fx.analysis import Analysis, analyse
from optin_fx.attributes import assign, attribute
from optin_fx.data import Batch
from optin_fx.dims import Axis, leaves
from optin_fx.errors import PlanError
from optin_fx.groups import Group, group, leaf_of
from optin_fx.interpreter import flat_inputs
from optin_fx.plan import make_plan
from optin_fx.program import Program, trace
from optin_fx.rewriting import rewrite


@dataclass(frozen=True)
class Region:
    """A group's part of a program, at the example inputs' sizes.

    Attributes:
        program: the part alone; its inputs are what it reads from outside.
        group: the group's name in it.
        signature: equal for regions that differ in nothing but the values of their weights.
    """

    program: Program
    group: str
    signature: str

    def at(self, width: int) -> Program:
        """The part with that many units."""
        extent = group(self.program)[self.group].extent
        return self.program if width == extent else rewrite(self.program, make_plan(self.program, {self.group: range(width)}))


def region_of(program: Program, name: str, values: dict[str, Any] | None = None) -> Region:
    """The nodes whose result has the group's axis, and those that consume it.

    Args:
        values: results of the program's nodes on its example inputs, from `node_values`; worked out if not given.

    Raises:
        PlanError: cut out of the program, the group cannot shrink.
    """
    analysis = analyse(program)
    values = node_values(program) if values is None else values
    leaf = leaf_of(analysis, name)
    inside = _touched(analysis, leaf)
    module, inputs, text = _extracted(program, inside, values)
    part = trace(module, inputs)
    members = set(group(program)[name].members)
    found = [g for g in group(part).free if members & set(g.members) and g.extent == leaf.size]
    if not found:
        raise PlanError(f"the group {name!r} cannot shrink outside its program", so="its latency cannot be measured alone")
    return Region(part, found[0].name, hashlib.sha256(f"{text}{leaf.size}{_places(found[0])}".encode()).hexdigest()[:16])


def node_values(program: Program) -> dict[str, Any]:
    """Results of all nodes on the example inputs, by name."""
    found: dict[str, Any] = {}

    class Keep(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            found[n.name] = result = super().run_node(n)
            return result

    with torch.no_grad():
        Keep(program.graph_module, garbage_collect_values=False).run(
            *flat_inputs(program, Batch(program.args, program.kwargs)), enable_io_processing=False
        )
    return found


def _touched(analysis: Analysis, leaf: Axis) -> set[str]:
    """Names of the nodes that have a leaf in their result or contract it."""
    found = {consumer.node for consumer in analysis.consumers() if leaf in consumer.leaves}
    for node in analysis.program.graph_module.graph.nodes:
        axes = analysis.axes.get(node.name) if node.op == "call_function" else None
        flat = [axis for item in axes or () for axis in (item if isinstance(item, list) else [item]) if axis is not None]
        if any(leaf in leaves(axis) for axis in flat):
            found.add(node.name)
    return found


def _extracted(program: Program, inside: set[str], values: dict[str, Any]) -> tuple[fx.GraphModule, tuple[torch.Tensor, ...], str]:
    """A module of some nodes, what it reads from outside, and a text of its structure without names."""
    graph, root, lines = fx.Graph(), nn.Module(), []
    copies: dict[fx.Node, fx.Node] = {}
    inputs: list[torch.Tensor] = []
    source = program.graph_module

    def outer(node: fx.Node) -> Any:
        if node in copies:
            return copies[node]
        if node.op == "get_attr":
            assign(root, str(node.target), attribute(source, str(node.target)))
            copies[node] = graph.get_attr(str(node.target))
        elif isinstance(values[node.name], torch.Tensor):
            with graph.inserting_before(next(iter(graph.nodes), None)):
                copies[node] = graph.placeholder(f"outside_{len(inputs)}")
            inputs.append(values[node.name])
        else:
            return values[node.name]  # a size
        return copies[node]

    outputs = []
    for node in source.graph.nodes:
        if node.name not in inside:
            continue
        for read in node.all_input_nodes:
            outer(read)
        copies[node] = graph.node_copy(node, outer)
        shapes = [tuple(values[n.name].shape) for n in node.all_input_nodes if isinstance(values[n.name], torch.Tensor)]
        lines.append(f"{node.target} {shapes}")
        if any(user.name not in inside for user in node.users) and isinstance(values[node.name], torch.Tensor):
            outputs.append(copies[node])
    graph.output(tuple(outputs))
    placed = [node for node in graph.nodes if node.op == "placeholder"]
    order = [int(node.name.rpartition("_")[2]) for node in placed]
    return fx.GraphModule(root, graph), tuple(inputs[i].detach().clone() for i in order), "\n".join(lines)


def _places(found: Group) -> list[int]:
    return sorted(dim for _, dim in found.members)

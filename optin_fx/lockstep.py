"""A graph executed node by node over all batches at once, so that two graphs can be run side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from optin_fx.attributes import attribute
from optin_fx.data import Batch
from optin_fx.interpreter import flat_inputs
from optin_fx.program import Program


class Stream:
    """The values of a graph's nodes on every batch; each is freed after its last use."""

    def __init__(self, module: fx.GraphModule, program: Program, batches: Sequence[Batch]) -> None:
        self.module = module
        self.inputs = [iter(flat_inputs(program, batch)) for batch in batches]
        self.values: dict[str, list[Any]] = {}
        self.left = {node.name: len(node.users) for node in module.graph.nodes}

    def execute(self, node: fx.Node) -> None:
        """Run one node on every batch."""
        if node.op == "placeholder":
            self.values[node.name] = [next(flat) for flat in self.inputs]
        elif node.op == "get_attr":
            value = attribute(self.module, str(node.target))
            self.values[node.name] = [value.detach() if isinstance(value, torch.Tensor) else value] * len(self.inputs)
        elif node.op == "call_function":
            found = []
            for i in range(len(self.inputs)):
                args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: self.values[n.name][i])  # noqa: B023  used at once
                found.append(node.target(*args, **kwargs))  # type: ignore[operator]
            self.values[node.name] = found

    def release(self, node: fx.Node) -> None:
        """Free what this node was the last to read."""
        for value in node.all_input_nodes:
            self.left[value.name] = self.left.get(value.name, 1) - 1
            if self.left[value.name] <= 0:
                self.values.pop(value.name, None)

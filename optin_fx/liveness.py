"""Peak memory of activations, from the lifetimes of a graph's values, as a function of the groups' extents."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch._ops import OpOverload

from optin_fx.analysis import Analysis
from optin_fx.extents import Extents
from optin_fx.linearity import aliases
from optin_fx.polynomial import Polynomial, product_of

_SAME = (torch.ops.aten.dropout.default, torch.ops.aten.dropout_.default, torch.ops.aten.alias.default)
"""Ops that return their input in eval mode although their schema does not say so."""


@dataclass(frozen=True)
class Buffer:
    """Memory that one value needs, `size` bytes from node number `start` to node number `end`, both included."""

    size: Polynomial
    start: int
    end: int


class Peak:
    """The most bytes that are live at once, when nodes run in the graph's order and each value is freed after its last use.

    Views share the memory of what they view. Workspace inside kernels is not counted, nor is what an engine's fusions save.
    """

    def __init__(self, buffers: list[Buffer], always: Polynomial) -> None:
        self.buffers, self.always = buffers, always
        self.steps = max((b.end for b in buffers), default=0) + 1

    def __call__(self, extents: Mapping[str, float]) -> float:
        """Bytes at some extents."""
        return max(self._live(extents), default=0.0) + self.always(extents)

    def derivative(self, name: str, extents: Mapping[str, float]) -> float:
        """What one more unit adds to the place that is the fullest now."""
        live = self._live(extents)
        at = max(range(len(live)), key=live.__getitem__, default=0)
        return self.always.derivative(name, extents) + sum(b.size.derivative(name, extents) for b in self.buffers if b.start <= at <= b.end)

    def _live(self, extents: Mapping[str, float]) -> list[float]:
        change = [0.0] * (self.steps + 1)
        for buffer in self.buffers:
            size = buffer.size(extents)
            change[buffer.start] += size
            change[buffer.end + 1] -= size
        live, total = [], 0.0
        for value in change[:-1]:
            total += value
            live.append(total)
        return live


def peak_activations(analysis: Analysis, always: Polynomial | None = None) -> Peak:
    """Peak of a program's activations at its example inputs' sizes, plus a part that is always there (weights)."""
    return Peak(_merged(_buffers(analysis)), always or Polynomial())


def _buffers(analysis: Analysis) -> Iterator[Buffer]:
    extent = Extents(analysis)
    nodes = list(analysis.program.graph_module.graph.nodes)
    number = {node: i for i, node in enumerate(nodes)}
    last: dict[fx.Node, int] = {}
    owners: dict[fx.Node, fx.Node] = {}
    for node in nodes:
        owners[node] = owners[source] if (source := _viewed(node)) is not None else node
        for read in node.all_input_nodes:
            last[owners[read]] = number[node]
    for node in nodes:
        if node.op not in ("placeholder", "call_function") or owners[node] is not node:
            continue
        size = Polynomial()
        for value, axes in _results(node, analysis.axes.get(node.name)):
            size.add(product_of(extent(axis) for axis in axes), float(value.element_size()))
        if size.monomials:
            yield Buffer(size, number[node], last.get(node, number[node]))


def _results(node: fx.Node, axes: Any) -> Iterator[tuple[torch.Tensor, Any]]:
    value = node.meta.get("val")
    if isinstance(value, torch.Tensor):
        if axes is not None and not (axes and isinstance(axes[0], list)):
            yield value, axes
    elif isinstance(value, (tuple, list)) and axes is not None:
        yield from ((v, a) for v, a in zip(value, axes, strict=False) if isinstance(v, torch.Tensor) and a is not None)


def _viewed(node: fx.Node) -> fx.Node | None:
    """The node whose memory a node's result lies in."""
    if node.op != "call_function":
        return None
    inputs = [n for n in node.all_input_nodes if n.op != "get_attr"]
    if not inputs:
        return None
    if not isinstance(node.target, OpOverload):  # getitem
        return inputs[0] if isinstance(node.args[0], fx.Node) else None
    first = node.args[0] if node.args else None
    return first if (aliases(node.target) or node.target in _SAME) and isinstance(first, fx.Node) and first.op != "get_attr" else None


def _merged(buffers: Iterator[Buffer]) -> list[Buffer]:
    """Buffers of one lifetime added up."""
    found: dict[tuple[int, int], Polynomial] = {}
    for buffer in buffers:
        found.setdefault((buffer.start, buffer.end), Polynomial()).add(buffer.size)
    return [Buffer(size, start, end) for (start, end), size in found.items()]

"""Which outputs of which layer the entries of a tensor are, where ops only moved them: found by moving their numbers along.

A projection's result is reshaped, cut, permuted and repeated before attention reads it, in as many ways as there are models. The numbers
of its features go the same ways: each op that only moves entries is run on them, too. What does more to them than a factor ends there.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

from optin_fx.attributes import attribute
from optin_fx.data import Batch, has_fixed_rows, rows, take
from optin_fx.interpreter import flat_inputs
from optin_fx.linearity import Carries, carries, op_name
from optin_fx.program import Program
from optin_fx.refittable import CONTRACTIONS, Layer, layer_of

_SUMS = ("sum", "mean", "adaptive_avg_pool2d", "avg_pool2d", "im2col", "neg")
"""Ops that carry changes of one operand, but do more than move its entries."""
_SCALE = ("mul", "div", "neg")
_KEEP = ("dropout", "to", "_to_copy", "detach", "alias", "clone", "contiguous", "lift_fresh_copy")
"""Ops that leave every entry where it is; numbers of features need not be converted or copied."""


@dataclass(frozen=True)
class Origin:
    """What the entries of a tensor are.

    Attributes:
        layer: the layer whose results they are.
        features: the number of its output at every entry, of the tensor's shape.
        scale: what the layer's results were multiplied with on the way.
    """

    layer: Layer
    features: torch.Tensor
    scale: float


@dataclass(frozen=True)
class Reading:
    """One place where a tensor that came straight from a layer is read by an op that does not only move it."""

    reader: str
    source: str
    layer: str
    features: frozenset[int]


class Projections(fx.Interpreter):
    """Runs a graph once and follows the results of the layers that some nodes come from.

    Attributes:
        origins: of those of these nodes that come straight from a layer, by name.
        readings: every place that reads one of these layers' results.
        starts: of each of these nodes, the op that its entries come out of.
        samples: in the run.
    """

    def __init__(self, module: fx.GraphModule, wanted: Sequence[fx.Node], samples: int) -> None:
        super().__init__(module, garbage_collect_values=True)
        self.graph_module, self.samples = module, samples
        self.starts = {node: self._start(node) for node in wanted}
        self.layers = {node: layer for node in self.starts.values() if isinstance(layer := layer_of(node, module), Layer)}
        self.origins: dict[str, Origin] = {}
        self.readings: list[Reading] = []
        self._moving: dict[fx.Node, Any] = {}

    @classmethod
    def of(cls, module: fx.GraphModule, program: Program, batch: Batch, wanted: Sequence[fx.Node]) -> Projections:
        """Follow a run of a graph that was made from a program: on two samples, or the whole batch where the program takes no other."""
        if not has_fixed_rows(program):
            batch = take(batch, 0, 2)
        made = cls(module, wanted, rows(batch))
        with torch.no_grad():
            made.run(*flat_inputs(program, batch), enable_io_processing=False)
        return made

    def _start(self, node: fx.Node) -> fx.Node:
        """The first op on the way back that does more than to move entries, or to multiply all with one number."""
        while (_moves(node) or self.factor(node) is not None) and isinstance(node.args[0], fx.Node):
            node = node.args[0]
        return node

    def refusal(self, node: fx.Node) -> str:
        """Why one of these nodes has no origin."""
        start = self.starts[node]
        found = layer_of(start, self.graph_module)
        if start.target in CONTRACTIONS and isinstance(found, str):
            return found
        return f"what it reads comes out of {op_name(start)}, not straight from a projection"

    def run_node(self, n: fx.Node) -> Any:
        """Execute a node, and on the numbers of features, too."""
        result = super().run_node(n)
        moved = self._moved(n)
        if moved is not None:
            self._moving[n] = moved
        else:
            if n.op == "output" or isinstance(result, (torch.Tensor, tuple, list)):  # sizes and assertions read no entries
                self._read(n)
            layer = self.layers.get(n)
            if layer is not None:
                dim = layer.output_dim(result.dim())
                shape = [-1 if d == dim else 1 for d in range(result.dim())]
                numbers = torch.arange(result.shape[dim], dtype=torch.int32).reshape(shape).expand(result.shape)
                self._moving[n] = Origin(layer, numbers, 1.0)
        if n in self.starts and isinstance(self._moving.get(n), Origin):
            self.origins[n.name] = self._moving[n]
        for dead in self.user_to_last_uses.get(n, ()):
            self._moving.pop(dead, None)
        return result

    def _moved(self, n: fx.Node) -> Any:
        """The numbers behind an op that only moves entries, or multiplies all with one number; None behind any other."""
        source = n.args[0] if n.args else None
        if not isinstance(source, fx.Node) or source not in self._moving or n.op != "call_function":
            return None
        origin = self._moving[source]
        if not isinstance(origin, Origin):  # of several results
            return origin[n.args[1]] if n.target is operator.getitem else None
        factor = self.factor(n)
        if factor is not None:
            return Origin(origin.layer, origin.features, origin.scale * factor)
        if not _moves(n):
            return None
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        found = self._call(n, (origin.features, *args[1:]), kwargs)
        return pytree.tree_map(lambda numbers: Origin(origin.layer, numbers, origin.scale), found)

    @staticmethod
    def _call(n: fx.Node, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        try:
            return n.target(*args, **kwargs)  # type: ignore[operator]
        except RuntimeError:  # a view that the numbers, which are repeated and not stored, do not allow
            return n.target(args[0].contiguous(), *args[1:], **kwargs)  # type: ignore[operator]

    def factor(self, node: fx.Node) -> float | None:
        """The one number that an op multiplies its first operand with; None for any other op."""
        name = op_name(node)
        if name in _KEEP or name == "neg":
            return -1.0 if name == "neg" else 1.0
        if name not in _SCALE or len(node.args) != 2 or node.kwargs:
            return None
        by = node.args[1]
        if isinstance(by, fx.Node) and by.op == "get_attr":
            value = attribute(self.module, str(by.target))
            by = float(value) if value.numel() == 1 else None
        if not isinstance(by, (int, float)) or by == 0:
            return None
        return float(by) if name == "mul" else 1.0 / float(by)

    def _read(self, n: fx.Node) -> None:
        for source in pytree.tree_leaves((n.args, n.kwargs)):
            origin = self._moving.get(source) if isinstance(source, fx.Node) else None
            for one in pytree.tree_leaves(origin, is_leaf=lambda x: isinstance(x, Origin)):
                if isinstance(one, Origin):
                    self.readings.append(Reading(n.name, source.name, one.layer.weight_name, frozenset(one.features.unique().tolist())))


def _moves(node: fx.Node) -> bool:
    return op_name(node) in _KEEP or (carries(node) is Carries.ALONE and op_name(node) not in _SUMS)

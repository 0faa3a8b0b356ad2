"""Ops that ONNX can express and torch's exporter has no translation of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import fx

GROUPED = ("transformers.grouped_mm_fallback.default", "aten._grouped_mm.default")


def translations(graph: fx.Graph) -> dict[Callable[..., Any], Callable[..., Any]]:
    """What `torch.onnx.export` takes as `custom_translation_table`, for the ops of a graph."""
    found: dict[Any, list[fx.Node]] = {}
    for node in graph.nodes:
        if node.op == "call_function" and str(node.target) in GROUPED:
            found.setdefault(node.target, []).append(node)
    return {op: grouped_mm for op, nodes in found.items() if all(map(_sorted_rows, nodes))}


def _sorted_rows(node: fx.Node) -> bool:
    """Rows `[n, i]`, matrices `[e, i, o]` and offsets: torch's own op has other forms, and a bias and an output dtype, too."""
    arguments = (*node.args, *node.kwargs.values())
    ranks = [arg.meta["val"].dim() for arg in arguments if isinstance(arg, fx.Node)]
    return ranks == [2, 3, 1] and all(isinstance(arg, fx.Node) or arg is None for arg in arguments)


def grouped_mm(rows: Any, weight: Any, offsets: Any, *_: Any, **__: Any) -> Any:
    """Rows `[n, i]` sorted by expert, times their expert's matrix in `[e, i, o]`; `offsets` `[e]` says where each expert's rows end.

    One slice and one product for each expert, so that no more is computed than the experts' own rows. Rows behind the last
    offset belong to no expert, and are zero.
    """
    from onnxscript import opset18 as op

    count, width = weight.shape[0], weight.shape[2]
    ends = op.Cast(offsets, to=7)
    first = [0]
    parts = []
    start = op.Constant(value_ints=first)
    for expert in range(count):
        end = op.Slice(ends, op.Constant(value_ints=[expert]), op.Constant(value_ints=[expert + 1]))
        matrix = op.Gather(weight, op.Constant(value_int=expert), axis=0)
        parts.append(op.MatMul(op.Slice(rows, start, end, op.Constant(value_ints=first)), matrix))
        start = end
    rest = op.Slice(op.Shape(rows), op.Constant(value_ints=first), op.Constant(value_ints=[1]))
    shape = op.Concat(op.Sub(rest, start), op.Constant(value_ints=[width]), axis=0)
    return op.Concat(*parts, op.CastLike(op.ConstantOfShape(shape), rows), axis=0)

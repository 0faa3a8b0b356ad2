"""Shape arithmetic of an ONNX graph made constant.

With two dynamic dims the exporter computes the target of every Reshape at run time: Shape, Gather, Concat. Layers of one width share these
nodes, and layers of different widths, which is what a pruner makes, cannot. Most of it needs no arithmetic at all: a Reshape
copies a dim of its input where its target says 0, and finds one size by itself where it says -1. Where two sizes have to be computed, the
width beside them need not be said: layers of all widths then share one target. A mask that is expanded to each layer's heads
is broadcast by its reader anyway. The exporter's transposed keys, `Reshape(Transpose(Reshape(x)))`, are one Transpose, which engines fold
into the product that reads it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Entry = int | str | None  # a number, a symbol, or unknown
BROADCASTING = frozenset(
    ("Add", "Sub", "Mul", "Div", "Pow", "Where", "And", "Or", "Xor", "Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual")
)
"""Ops whose operands are broadcast as Expand does it."""


def make_shapes_constant(model: Any) -> int:
    """Edit an `onnx_ir.Model` in place; returns how many nodes fewer it has."""
    from onnx_ir.passes.common import RemoveUnusedNodesPass

    before = len(model.graph)
    shared: dict[Any, Any] = {}
    for node in list(model.graph):
        if node.op_type == "Expand" and node.domain == "":
            _not_expanded(model.graph, node)
        if node.op_type != "Reshape" or node.domain != "":
            continue
        if not (_as_transpose(model.graph, node) or _dropped(model.graph, node) or _constant_target(model.graph, node)):
            _shared_target(model.graph, node, shared)
    RemoveUnusedNodesPass()(model)
    return before - len(model.graph)


def _not_expanded(graph: Any, node: Any) -> None:
    """Where(Expand(mask, sizes of x), a, x) -> Where(mask, a, x), if all readers broadcast, each with an operand of those sizes."""
    wide = node.outputs[0]
    sizes = _dims(wide)
    if sizes is None or None in sizes or wide.is_graph_output():
        return
    for reader in wide.consumers():
        others = [value for value in reader.inputs if value is not None and value is not wide]
        if reader.op_type not in BROADCASTING or reader.domain != "" or sizes not in [_dims(value) for value in others]:
            return
    wide.replace_all_uses_with(node.inputs[0])
    graph.remove(node, safe=True)


def _constant_target(graph: Any, node: Any) -> bool:
    """Reshape(x, computed) -> Reshape(x, [0, 0, -1, 64]) where 0 and -1 say it all."""
    data, target = node.inputs
    wanted, given = _entries(target), _dims(data)
    if target.const_value is not None or wanted is None or given is None or None in given:
        return False
    found: list[int] = []
    for index, entry in enumerate(wanted):
        copied = isinstance(entry, str) and index < len(given) and given[index] == entry
        found.append(0 if copied else entry if isinstance(entry, int) else -1)
    if found.count(-1) > 1 or 0 in [entry for entry in wanted if isinstance(entry, int)]:
        return False
    node.replace_input_with(1, _numbers(graph, found))
    node.attributes.pop("allowzero", None)
    return True


def _shared_target(graph: Any, node: Any, shared: dict[Any, Any]) -> None:
    """Reshape(x, Concat(batch, length, [64])) -> Reshape(x, Concat(batch, length, [-1])), one Concat for all widths."""
    import onnx_ir as ir

    target = node.inputs[1]
    concat = target.producer()
    if concat is None or concat.op_type != "Concat":
        return
    width = [entry for entry in _entries(target) or () if isinstance(entry, int)]
    places = [index for index, value in enumerate(concat.inputs) if _entries(value) == width]
    if len(width) != 1 or width[0] <= 0 or not places:
        return
    parts = tuple(_numbers(graph, [-1]) if index in places else value for index, value in enumerate(concat.inputs))
    if parts not in shared:
        new = ir.node("Concat", parts, attributes={"axis": 0}, name=f"{concat.name}_shared")
        new.outputs[0].name, new.outputs[0].dtype, new.outputs[0].shape = f"{target.name}_shared", target.dtype, target.shape
        graph.insert_before(node, new)
        shared[parts] = new.outputs[0]
    node.replace_input_with(1, shared[parts])
    node.attributes.pop("allowzero", None)


def _dropped(graph: Any, node: Any) -> bool:
    """Reshape(x) to the shape that x has -> x."""
    given, wanted = _dims(node.inputs[0]), _entries(node.inputs[1])
    if given is None or wanted is None or None in given or len(given) != len(wanted) or wanted.count(-1) > 1:
        return False
    if any(entry not in (-1, size) for entry, size in zip(wanted, given, strict=True)) or node.outputs[0].is_graph_output():
        return False
    node.outputs[0].replace_all_uses_with(node.inputs[0])
    graph.remove(node, safe=True)
    return True


def _as_transpose(graph: Any, node: Any) -> bool:
    """Reshape(Transpose(Reshape(x, [-1, n, d]), [0, 2, 1]), [b, h, d, n]) -> Transpose(x, [0, 1, 3, 2])."""
    import onnx_ir as ir

    transposed = node.inputs[0].producer()
    flat = transposed.inputs[0].producer() if transposed is not None and transposed.op_type == "Transpose" else None
    if flat is None or flat.op_type != "Reshape" or list(transposed.attributes["perm"].value) != [0, 2, 1]:
        return False
    dims, inner, outer = _dims(flat.inputs[0]), _entries(flat.inputs[1]), _entries(node.inputs[1])
    if dims is None or None in dims or len(dims) != 4 or inner is None or outer is None:
        return False
    swapped = [dims[0], dims[1], dims[3], dims[2]]
    flattened = dims[0] * dims[1] if isinstance(dims[0], int) and isinstance(dims[1], int) else -1
    if [-1, *inner[1:]] != [-1, *dims[2:]] or inner[0] not in (-1, flattened) or outer != swapped:
        return False
    new = ir.node("Transpose", [flat.inputs[0]], attributes={"perm": [0, 1, 3, 2]}, name=f"{node.name}_transposed")
    new.metadata_props.update(node.metadata_props)
    output = node.outputs[0]
    new.outputs[0].dtype, new.outputs[0].shape, new.outputs[0].name = output.dtype, ir.Shape(swapped), f"{output.name}_transposed"
    graph.insert_before(node, new)
    output.replace_all_uses_with(new.outputs[0], replace_graph_outputs=True)
    graph.remove(node, safe=True)
    return True


def _numbers(graph: Any, entries: Sequence[int]) -> Any:
    """An initializer with these sizes; one for all that want the same."""
    import numpy as np
    import onnx_ir as ir

    name = "shape_" + "_".join(str(size).replace("-", "m") for size in entries)
    value = graph.initializers.get(name)
    if value is None:
        value = ir.val(name, const_value=ir.tensor(np.array(entries, dtype=np.int64), name=name))
        graph.register_initializer(value)
    return value


def _dims(value: Any) -> list[Entry] | None:
    """The sizes of a value."""
    if value is None or value.shape is None:
        return None
    return [dim if isinstance(dim, int) else dim.value for dim in value.shape]


def _entries(value: Any) -> list[Entry] | None:
    """The entries of a list of sizes, as far as they follow from constants and from shapes; None where even their number is unknown."""
    if value.const_value is not None:
        return [int(entry) for entry in value.const_value.numpy().reshape(-1)]
    node = value.producer()
    if node is None:
        return None
    attributes = {name: attribute.value for name, attribute in node.attributes.items()}
    if node.op_type == "Shape":
        dims = _dims(node.inputs[0])
        return dims[attributes.get("start", 0) : attributes.get("end", len(dims))] if dims is not None else None
    if node.op_type == "Concat":  # a single size that does not follow is one entry all the same
        lists = [_entries(item) or ([None] if _dims(item) == [1] else None) for item in node.inputs]
        return None if None in lists else [entry for part in lists if part is not None for entry in part]
    parts = [_entries(item) for item in node.inputs if item is not None]
    known = [part for part in parts if part is not None]
    if len(known) < len(parts):
        return None
    if node.op_type in ("Squeeze", "Unsqueeze", "Reshape", "Identity", "Cast"):
        return known[0]
    if node.op_type == "Gather":
        return [known[0][index] for index in known[1] if isinstance(index, int)]
    if node.op_type == "Slice":
        start, end, *rest = (part[0] for part in known[1:])
        step = rest[1] if len(rest) == 2 else 1  # after the axis, of which a list of sizes has one
        if isinstance(start, int) and isinstance(end, int) and isinstance(step, int):
            return known[0][start:end:step]
    return None

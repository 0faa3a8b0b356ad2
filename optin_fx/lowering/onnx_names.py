"""Names of an ONNX graph: inputs, outputs and dynamic sizes are called as in the signature."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from optin_fx.errors import LoweringError
from optin_fx.lowering.signature import Signature
from optin_fx.lowering.symbols import renamed


def name_graph(model: Any, signature: Signature) -> None:
    """Give graph inputs, outputs and dynamic dims the signature's names."""
    import onnx_ir as ir

    renames = _symbol_names(model, signature)
    taken = {leaf.name for leaf in (*signature.inputs, *signature.outputs)}
    for node in model.graph:
        for value in node.outputs:
            if value.name in taken:
                value.name = f"{value.name}_inner"
            if value.shape is not None:
                value.shape = ir.Shape([dim if isinstance(dim, int) else _renamed_dim(dim.value, renames) for dim in value.shape])
    for value, leaf in zip(model.graph.inputs, signature.tensor_inputs, strict=True):
        value.name = leaf.name
        value.shape = ir.Shape(leaf.sizes)
    values = list(model.graph.outputs)
    if len({id(value) for value in values}) != len(values) or any(value.is_graph_input() for value in values):
        raise LoweringError("one value is returned twice by the ONNX graph", fix="clone one of the outputs in the model")
    for value, leaf in zip(values, signature.tensor_outputs, strict=True):
        value.name = leaf.name
        value.shape = ir.Shape(leaf.sizes)


def _renamed_dim(symbol: Any, renames: Mapping[str, str]) -> str | None:
    # an unknown size stays unknown: two sizes of one name share a buffer in ONNX Runtime
    return None if symbol is None else renamed(str(symbol), renames)


def _symbol_names(model: Any, signature: Signature) -> dict[str, str]:
    found: dict[str, str] = {}
    for value, leaf in zip(model.graph.inputs, signature.tensor_inputs, strict=True):
        for dim, size in zip(value.shape or (), leaf.sizes, strict=False):
            if isinstance(size, str) and size.isidentifier() and not isinstance(dim, int):
                found[str(dim.value)] = size
    return found

"""Which ONNX node, and which line of the user's model, an engine's refusal is about."""

from __future__ import annotations

import re
from typing import Any

from optin_fx.source_lines import user_line


def place_of(node: Any) -> str:
    """`Conv node_conv2d, model.py:12`, as far as the node knows."""
    line = user_line(node.metadata_props.get("pkg.torch.onnx.stack_trace"))
    return ", ".join(text for text in (f"{node.op_type} {node.name}", line) if text)


def refused_place(model: Any, message: str) -> str | None:
    """Where the node is that a message names, by its name or else by its type and version, as in `Det-20` and `Erf(13)`."""
    nodes = list(model.graph)
    named = (node for node in nodes if node.name and re.search(rf"\b{re.escape(node.name)}\b", message))
    of_type = (node for node in nodes if re.search(rf"\b{node.op_type}[-(]\d", message))
    node = next(named, None) or next(of_type, None)
    return place_of(node) if node is not None else None

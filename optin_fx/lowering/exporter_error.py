"""What the ONNX exporter means by an error: its reason in one line, and the line of the model."""

from __future__ import annotations

import re
from collections.abc import Sequence

from optin_fx.program import Program
from optin_fx.source_lines import user_line


def reason(error: BaseException) -> str:
    """The first line of the innermost cause."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines: Sequence[str] = _plain(error).splitlines() or [type(error).__name__]
    return lines[0][:300]


def _plain(error: BaseException) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip()


def refused_node(error: BaseException, program: Program) -> str | None:
    """The FX node that the exporter names, and the line of the model that it comes from."""
    cause: BaseException | None = error
    while cause is not None:
        found = re.search(r"(?:translating node|executing) %(\w+) : .*?target=([\w.]+)", _plain(cause))
        if found:
            nodes, op = list(program.exported.graph.nodes), ["", *found[2].split(".")][-2]
            exact = [node for node in nodes if node.name == found[1]]
            # the exporter speaks of its decomposed graph, where names have changed
            node = next(iter(exact or [node for node in nodes if op in str(node.target)]), None)
            told = _plain(cause).partition("Original traceback:")[2]
            line = user_line(told) or (user_line(node.meta.get("stack_trace")) if node is not None else None)
            return f"%{found[1]} ({found[2]})" + (f", {line}" if line else "")
        cause = cause.__cause__
    return None

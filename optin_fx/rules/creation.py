"""Tensors made from nothing. Constant ones may have any extent; in counting ones every entry is different."""

from __future__ import annotations

import torch

from optin_fx.rulebook import Call, Line, line, rule
from optin_fx.rules.shaping import follow

aten = torch.ops.aten


def _made(call: Call) -> str:
    reads = ", ".join("_" for _ in call.operands)
    return f"{reads} -> " + " ".join(f"n{i}" for i in range(len(call.results[0])))


rule(
    aten.zeros.default,
    aten.ones.default,
    aten.empty.memory_format,
    aten.full.default,
    aten.rand.default,
    aten.randn.default,
    aten.new_zeros.default,
    aten.new_ones.default,
    aten.new_empty.default,
    aten.new_full.default,
    resize=follow("size"),
)(_made)


@rule(
    aten.arange.default,
    aten.arange.start,
    aten.arange.start_step,
    aten.linspace.default,
    aten.eye.default,
    aten.eye.m,
    aten.scalar_tensor.default,
    aten.tril_indices.default,
    aten.triu_indices.default,
)
def counted(call: Call) -> Line:
    """Positions written out as values."""
    return line(" -> " + " ".join(f"n{i}!" for i in range(len(call.results[0]))), why="positions written out as values")

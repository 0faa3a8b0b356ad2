"""Run an engine beside its program and compare."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils import _pytree as pytree

from optin_fx.choices import first_choice
from optin_fx.lowering.closeness import Closeness, closeness
from optin_fx.lowering.engine import Engine
from optin_fx.program import Program

# A second batch size catches a batch that an exporter has baked in.
OTHER_BATCH = 3


def agreement(engine: Engine, program: Program) -> Closeness:
    """The worse of the differences at the example inputs and, where the batch is dynamic, at another batch size."""
    calls = [(program.args, program.kwargs)]
    low, high = engine.signature.bounds.get("batch", (1, 1))
    if low <= OTHER_BATCH <= (high or OTHER_BATCH):
        calls.append(engine.signature.resized(program.args, program.kwargs, {"batch": OTHER_BATCH}))
    worst = Closeness(0.0, 0.0)
    for args, kwargs in calls:
        found = compare(engine, program, args, kwargs)
        worst = Closeness(*(max(a, b) for a, b in zip(_fields(worst), _fields(found), strict=True)))
    return worst


def advice(program: Program, fix: str) -> str:
    """What to do about a difference; a choice by rank may be innocent, and then no precision helps."""
    chosen = first_choice(program)
    if chosen is None:
        return fix
    return (
        f"{fix}; or it is near ties: {chosen} chooses by rank, and rounding may choose otherwise (check=False, and judge it on your data)"
    )


def compare(engine: Engine, program: Program, args: Any, kwargs: Any) -> Closeness:
    """Differences between engine and program on one call."""
    return closeness(tensors_of(engine(*args, **kwargs)), tensors_of(program(*args, **kwargs)))


def tensors_of(structure: Any) -> list[torch.Tensor]:
    """The tensors in a structure, in order."""
    return [leaf for leaf in pytree.tree_leaves(structure) if isinstance(leaf, torch.Tensor)]


def _fields(item: Closeness) -> tuple[float, float, float]:
    return item.max_abs, item.max_rel, item.unequal

"""Hashes of what a result depends on: weights, data, options. Equal in every process that has the same things."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import fields
from types import FunctionType
from typing import TYPE_CHECKING, Any

import torch
from torch.utils import _pytree as pytree

from optin_fx.data import Batch
from optin_fx.offload import read_weight
from optin_fx.program import Program

if TYPE_CHECKING:
    from optin_fx.pipeline import Pass


def facts_of(program: Program, batches: Sequence[Batch], step: Pass) -> dict[str, str]:
    """What a pass's result depends on, by name: "graph", "weights", "data", "options"."""
    return {
        "graph": program.fingerprint,
        "weights": digest(read_weight(program, name) for name in sorted(program.tensors)),
        "data": digest(leaf for batch in batches for leaf in pytree.tree_leaves((batch.args, dict(batch.kwargs), batch.labels))),
        "options": digest([step.name(), *((option.name, getattr(step, option.name)) for option in fields(step))]),
    }


def digest(values: Iterable[Any]) -> str:
    """Sixteen hexadecimal digits for a sequence of tensors and of things that print themselves."""
    found = hashlib.sha256()
    for value in values:
        _add(found, value)
    return found.hexdigest()[:16]


def _add(found: Any, value: Any) -> None:
    if isinstance(value, torch.Tensor):
        found.update(f"{value.dtype}{tuple(value.shape)}".encode())
        if value.numel():
            found.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    elif isinstance(value, (tuple, list)):
        found.update(f"{len(value)}(".encode())
        for item in value:
            _add(found, item)
    elif isinstance(value, FunctionType):  # its address would differ between processes
        found.update(f"{value.__module__}.{value.__qualname__}".encode() + value.__code__.co_code)
        _add(found, [item for item in value.__code__.co_consts if isinstance(item, (str, int, float))])
    else:
        found.update(f"{type(value).__qualname__}:{value!r};".encode())

"""Names for dynamic sizes: `batch` in place of `s77`, in the graph, the engine and the profile alike."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch

from optin_fx.errors import LoweringError

Size = int | str


def name_symbols(inputs: Mapping[str, Any], dim_names: Mapping[str, Mapping[int, str]] | None = None) -> dict[str, str]:
    """Symbol of torch.export (`s77`) -> name, for every symbol that is a whole dim of a tensor input.

    Args:
        inputs: fake tensors by input name, in call order.
        dim_names: input name -> dim -> name, where the caller has one.
    """
    tensors = {name: value for name, value in inputs.items() if isinstance(value, torch.Tensor)}
    leading = {str(value.shape[0]) for value in tensors.values() if value.dim() and _is_symbol(value.shape[0])}
    names: dict[str, str] = {}
    for name, dims in (dim_names or {}).items():
        if name not in tensors:
            raise LoweringError(
                f"dim_names speaks of an input {name!r} that the program does not have",
                fix=f"use one of {', '.join(tensors)}",
            )
        for dim, label in dims.items():
            if dim < tensors[name].dim() and _is_symbol(tensors[name].shape[dim]):
                names[str(tensors[name].shape[dim])] = label
    for name, value in tensors.items():
        for dim, size in enumerate(value.shape):
            if _is_symbol(size):
                label = "batch" if dim == 0 and len(leading) == 1 else f"{name}_dim{dim}"
                names.setdefault(str(size), label)
    return names


def sizes_of(tensor: torch.Tensor, symbols: Mapping[str, str]) -> tuple[Size, ...]:
    """Sizes of a fake tensor with symbols renamed; a derived size stays an expression (`2*batch`)."""
    return tuple(size if isinstance(size, int) else renamed(str(size), symbols) for size in tensor.shape)


def renamed(expression: str, symbols: Mapping[str, str]) -> str:
    """`expression` with every known symbol replaced by its name."""
    return re.sub(r"[A-Za-z_]\w*", lambda match: symbols.get(match[0], match[0]), expression)


def _is_symbol(size: Any) -> bool:
    return isinstance(size, torch.SymInt) and str(size).isidentifier()

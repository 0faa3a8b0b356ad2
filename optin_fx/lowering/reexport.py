"""A program's graph, edited or run by another interpreter, exported anew with the same inputs and the same dynamic dims."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from optin_fx.program import Program


def reexported(module: nn.Module, program: Program) -> ExportedProgram:
    """Export `module`, whose `forward(*args, **kwargs)` is called as the program is."""
    args, kwargs = traceable_inputs(program)
    shapes = _dynamic_shapes(program, args, kwargs)
    return torch.export.export(module, args, kwargs, dynamic_shapes=shapes, strict=False)


def traceable_inputs(program: Program) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Example inputs whose dynamic dims are at least two: torch.export would bake in a one."""
    shapes = _symbolic(program)
    leaves, spec = pytree.tree_flatten((program.args, program.kwargs))
    for index, (value, dims) in enumerate(zip(leaves, shapes, strict=True)):
        for dim in dims:
            if value.shape[dim] == 1:
                value = torch.cat([value, value], dim)
        leaves[index] = value
    args, kwargs = pytree.tree_unflatten(leaves, spec)
    return args, kwargs


def _dynamic_shapes(program: Program, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    leaves, spec = pytree.tree_flatten((args, dict(kwargs)))
    marks = [
        dict.fromkeys(dims, torch.export.Dim.AUTO) if isinstance(value, torch.Tensor) else None
        for value, dims in zip(leaves, _symbolic(program), strict=True)
    ]
    shaped_args, shaped_kwargs = pytree.tree_unflatten(marks, spec)
    # `forward(*args, **kwargs)` has two parameters of its own, and torch wants no key for an empty one
    named = {"args": shaped_args, "kwargs": shaped_kwargs}
    return {name: shapes for name, shapes in named.items() if shapes}


def _symbolic(program: Program) -> list[list[int]]:
    values = {node.name: node.meta.get("val") for node in program.exported.graph.nodes}
    found = []
    for name in program.exported.graph_signature.user_inputs:
        value = values.get(name) if isinstance(name, str) else None
        dims = enumerate(value.shape) if isinstance(value, torch.Tensor) else ()
        found.append([dim for dim, size in dims if not isinstance(size, int)])
    return found

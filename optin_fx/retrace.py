"""Trace an edited graph again: the only check of shapes that nothing can slip past, and what makes the result a `Program`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import fx
from torch.export import Dim, ExportedProgram
from torch.export.graph_signature import InputKind
from torch.utils import _pytree as pytree

from optin_fx.containers import in_lists
from optin_fx.program import Program, at_least_two_rows


def retrace(module: fx.GraphModule, source: Program, *, provenance: Mapping[str, Any]) -> Program:
    """Export `module`, an edited copy of `source`'s graph, with the dynamic dims of `source`."""
    from torch._dynamo.exc import UserError  # late: it takes as long as all of optin_fx, and tracing needs it anyway

    args, kwargs = _two_rows_where_dynamic(source)
    shapes = dynamic_shapes_of(source.exported, source.args, source.kwargs)
    try:
        exported = torch.export.export(module, args, kwargs, dynamic_shapes=shapes, strict=False)
    except UserError:
        # A named dim demands every size in its range; some models only trace with a few sizes left out (s != 64). Dims that are
        # dynamic without a name take such guards along, as the first trace did, at the price of one name for one batch.
        shapes = dynamic_shapes_of(source.exported, source.args, source.kwargs, named=False)
        exported = torch.export.export(module, args, kwargs, dynamic_shapes=shapes, strict=False)
    return Program(exported, source.args, source.kwargs, provenance={**source.provenance, **provenance})


def _two_rows_where_dynamic(source: Program) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Example inputs whose dynamic batch is not one, which torch.export would take for a constant."""
    leaves, spec = pytree.tree_flatten((source.args, source.kwargs))
    fakes = [node.meta.get("val") for node in _inputs(source.exported)]
    for i, (leaf, fake) in enumerate(zip(leaves, fakes, strict=True)):
        if isinstance(leaf, torch.Tensor) and leaf.dim() and isinstance(fake, torch.Tensor) and is_dynamic(fake.shape[0]):
            leaves[i] = at_least_two_rows(leaf)
    args, kwargs = pytree.tree_unflatten(leaves, spec)
    return args, kwargs


def _inputs(exported: ExportedProgram) -> list[fx.Node]:
    kinds = {spec.arg.name: spec.kind for spec in exported.graph_signature.input_specs}
    return [n for n in exported.graph.nodes if n.op == "placeholder" and kinds.get(n.name) is InputKind.USER_INPUT]


def dynamic_shapes_of(exported: ExportedProgram, args: tuple[Any, ...], kwargs: Mapping[str, Any], *, named: bool = True) -> Any:
    """The `dynamic_shapes` that a program was exported with, read back from its symbols; None if all is static.

    Args:
        named: equal symbols share a named `Dim`; else each is `Dim.DYNAMIC` with the symbol's bounds.
    """
    leaves, spec = pytree.tree_flatten((args, dict(kwargs)))
    dims: dict[Any, Any] = {}
    marks: list[Any] = []
    any_dynamic = False
    for node, leaf in zip(_inputs(exported), leaves, strict=True):
        fake = node.meta.get("val")
        mark: dict[int, Any] = {}
        if isinstance(leaf, torch.Tensor) and isinstance(fake, torch.Tensor):
            extents: list[Any] = list(fake.shape)
            for i, extent in enumerate(extents):
                if is_dynamic(extent):
                    mark[i] = _dim(extent.node.expr, dims, exported, named=named)
        any_dynamic |= bool(mark)
        marks.append(mark or None)
    if not any_dynamic:
        return None
    as_args, as_kwargs = in_lists(spec, iter(marks))
    if not kwargs:
        return as_args
    names = _positional_names(exported, len(args))
    return {**dict(zip(names, as_args, strict=True)), **as_kwargs}


def _dim(expr: Any, dims: dict[Any, Any], exported: ExportedProgram, *, named: bool) -> Any:
    if not expr.is_symbol:
        return Dim.AUTO
    if expr not in dims:
        limits = exported.range_constraints.get(expr)
        low: Any = limits.lower if limits is not None else 0
        high: Any = limits.upper if limits is not None else None
        bounds: dict[str, int] = {}
        if _is_number(low) and int(low) > 2:
            bounds["min"] = int(low)
        if _is_number(high) and int(high) < 2**31:
            bounds["max"] = int(high)
        dims[expr] = Dim(f"_{expr}", **bounds) if named else Dim.DYNAMIC(**bounds)
    return dims[expr]


def is_dynamic(extent: Any) -> bool:
    """True for an extent that is free; torch leaves SymInts of one value where a model fixed a size."""
    return not isinstance(extent, int) and bool(extent.node.expr.free_symbols)


def _is_number(bound: Any) -> bool:
    # torch writes an open end as its own infinity, which sympy calls an integer without being one
    return isinstance(bound, int) or (bound is not None and bool(bound.is_Integer))


def _positional_names(exported: ExportedProgram, count: int) -> list[str]:
    import inspect

    forward = exported.module(check_guards=False).forward
    return list(inspect.signature(forward).parameters)[:count]

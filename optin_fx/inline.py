"""Inline the regions that torch.export wraps in higher-order ops, so that rules see one flat graph."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import fx

from optin_fx.attributes import attribute
from optin_fx.autocasting import casts_of, dtypes_hold

Casts = Mapping[fx.Node, Mapping[fx.Node, torch.dtype]]


def inline_grad_regions(module: fx.GraphModule) -> fx.GraphModule:
    """Replace `wrap_with_set_grad_enabled(flag, region, *args)` and `wrap_with_autocast` by the region's own nodes.

    What a `no_grad` region returns is detached, so that training the result sees the gradients that the model defined. In a region
    with autocast on, the casts that it makes as it runs are written out (`optin_fx.autocasting`). Where they cannot be told, it stays,
    and what it touches is pinned.
    """
    before = copy.deepcopy(module.graph) if any(map(_is_autocast, module.graph.nodes)) else None
    _inline_all(module, autocast=True)
    if before is not None and not dtypes_hold(module):
        module.graph = before
        _inline_all(module, autocast=False)
    return module


def _inline_all(module: fx.GraphModule, *, autocast: bool) -> None:
    pending = True
    while pending:
        pending = False
        for node in list(module.graph.nodes):
            # one at a time: what a region reads may be what the one before it returned
            if (region := _region(module, node, autocast=autocast)) is not None:
                _inline(module, node, *region)
                pending = True
    module.graph.eliminate_dead_code()
    module.recompile()


def _is_autocast(node: fx.Node) -> bool:
    return node.op == "call_function" and getattr(node.target, "__name__", "") == "wrap_with_autocast" and node.args[2] is not False


def _region(module: fx.GraphModule, node: fx.Node, *, autocast: bool) -> tuple[bool, fx.Node, Sequence[Any], Casts] | None:
    """Whether gradients flow, the region's graph, its arguments and its casts, if the node is a region to inline."""
    name = getattr(node.target, "__name__", "") if node.op == "call_function" else ""
    casts: Casts | None = {}
    if name == "wrap_with_set_grad_enabled":
        enabled, region, *arguments = node.args
    elif name == "wrap_with_autocast" and (autocast or not _is_autocast(node)):
        device, dtype, switched_on, _cache, region, *arguments = node.args
        enabled = True
        if switched_on is not False:
            assert isinstance(region, fx.Node)
            casts = casts_of(attribute(module, str(region.target)), str(device), dtype or torch.get_autocast_dtype(str(device)))  # type: ignore[arg-type]
    else:
        return None
    assert isinstance(region, fx.Node)
    return None if casts is None else (bool(enabled), region, arguments, casts)


def _inline(module: fx.GraphModule, node: fx.Node, enabled: bool, region: fx.Node, arguments: Sequence[Any], casts: Casts) -> None:
    body: fx.GraphModule = attribute(module, str(region.target))
    graph = module.graph
    values: dict[fx.Node, Any] = {}
    cast: dict[tuple[fx.Node, torch.dtype], fx.Node] = {}

    def read(value: fx.Node, reader: fx.Node) -> Any:
        dtype = casts.get(reader, {}).get(value)
        if dtype is None:
            return values[value]
        if (value, dtype) not in cast:
            cast[value, dtype] = graph.call_function(torch.ops.aten.to.dtype, (values[value], dtype))
            cast[value, dtype].meta = {**reader.meta, "val": value.meta["val"].to(dtype)}
        return cast[value, dtype]

    waiting = iter(arguments)
    with graph.inserting_before(node):
        for inner in body.graph.nodes:
            if inner.op == "placeholder":
                values[inner] = next(waiting)
            elif inner.op == "get_attr":
                values[inner] = graph.create_node("get_attr", f"{region.target}.{inner.target}", name=inner.name)
                values[inner].meta = dict(inner.meta)
            elif inner.op == "output":
                results = fx.map_arg(inner.args[0], lambda n: values[n])
            else:
                values[inner] = graph.node_copy(inner, partial(read, reader=inner))
        if not enabled:
            results = tuple(_detached(graph, value) for value in results)
    for user in list(node.users):  # the region returns a tuple, read by getitem only
        user.replace_all_uses_with(results[user.args[1]])
        graph.erase_node(user)
    graph.erase_node(node)


def _detached(graph: fx.Graph, value: Any) -> Any:
    fake = value.meta.get("val") if isinstance(value, fx.Node) else None
    if not isinstance(fake, torch.Tensor) or not fake.is_floating_point():
        return value
    detached = graph.call_function(torch.ops.aten.detach.default, (value,))
    detached.meta = dict(value.meta)
    return detached

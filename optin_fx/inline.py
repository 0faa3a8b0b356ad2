"""Inline the regions that torch.export wraps in higher-order ops, so that rules see one flat graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from optin_fx.attributes import attribute


def inline_grad_regions(module: fx.GraphModule) -> fx.GraphModule:
    """Replace `wrap_with_set_grad_enabled(flag, region, *args)`, and `wrap_with_autocast` that is off, by the region's own nodes.

    What a `no_grad` region returns is detached, so that training the result sees the gradients that the model defined. A region
    with autocast on casts what its ops read as it runs, which the graph does not show; it stays, and what it touches is pinned.
    """
    while regions := [(node, *region) for node in module.graph.nodes if (region := _region(node))]:
        for node, grad, body, arguments in regions:
            _inline(module, node, grad, body, arguments)
    module.graph.eliminate_dead_code()
    module.recompile()
    return module


def _region(node: fx.Node) -> tuple[bool, fx.Node, Sequence[Any]] | None:
    """Whether gradients flow, the region's graph and its arguments, if the node is a region to inline."""
    name = getattr(node.target, "__name__", "") if node.op == "call_function" else ""
    if name == "wrap_with_set_grad_enabled":
        enabled, region, *arguments = node.args
    elif name == "wrap_with_autocast" and node.args[2] is False:
        _device, _dtype, _enabled, _cache, region, *arguments = node.args
        enabled = True
    else:
        return None
    assert isinstance(region, fx.Node)
    return bool(enabled), region, arguments


def _inline(module: fx.GraphModule, node: fx.Node, enabled: bool, region: fx.Node, arguments: Sequence[Any]) -> None:
    body: fx.GraphModule = attribute(module, str(region.target))
    graph = module.graph
    values: dict[fx.Node, Any] = {}
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
                values[inner] = graph.node_copy(inner, lambda n: values[n])
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

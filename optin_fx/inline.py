"""Inline the regions that torch.export wraps in higher-order ops, so that rules see one flat graph."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from optin_fx.attributes import attribute


def inline_grad_regions(module: fx.GraphModule) -> fx.GraphModule:
    """Replace `wrap_with_set_grad_enabled(flag, region, *args)` by the region's own nodes.

    What a `no_grad` region returns is detached, so that training the result sees the gradients that the model defined.
    """
    while True:
        regions = [n for n in module.graph.nodes if n.op == "call_function" and getattr(n.target, "__name__", "") == "wrap_with_set_grad_enabled"]
        if not regions:
            break
        for node in regions:
            _inline(module, node)
    module.graph.eliminate_dead_code()
    module.recompile()
    return module


def _inline(module: fx.GraphModule, node: fx.Node) -> None:
    enabled, region, *arguments = node.args
    assert isinstance(region, fx.Node)
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

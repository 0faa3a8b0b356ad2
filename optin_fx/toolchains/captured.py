"""Graphs as Dynamo captures them, with weights and numbers as inputs, made into modules over the data alone."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import Any

import torch
from torch import fx, nn

from optin_fx.attributes import attribute
from optin_fx.errors import TraceError


class Kind(Enum):
    """What an input of a captured graph is."""

    DATA = "data"
    WEIGHT = "weight"
    NUMBER = "number"


def kinds(graph_module: fx.GraphModule) -> list[Kind]:
    """What each input is: Dynamo marks weights, whose address does not change, and numbers that it hands over as tensors."""
    return [_kind(node) for node in graph_module.graph.find_nodes(op="placeholder")]


def _kind(node: fx.Node) -> Kind:
    fake = node.meta.get("example_value", node.meta.get("val"))
    if isinstance(fake, nn.Parameter) or "_dynamo_static_input_type" in node.meta.get("tensor_dict", {}):
        return Kind.WEIGHT
    as_tensor = getattr(node.meta.get("grapharg"), "pass_arg_as_tensor", False)
    return Kind.DATA if isinstance(fake, torch.Tensor) and not as_tensor else Kind.NUMBER


def refuse_training(inputs: Sequence[Any]) -> None:
    """Refuse where gradients would be wanted: the smaller graph has weights of its own.

    Raises:
        TraceError: gradients are on, and an input requires them.
    """
    if torch.is_grad_enabled() and any(isinstance(value, torch.Tensor) and value.requires_grad for value in inputs):
        raise TraceError(
            "the compiled model would be trained",
            so="gradients would go to weights that the smaller graph has left behind",
            fix="call it inside torch.no_grad(); to train a smaller model, use ofx.prune(...).module()",
        )


def number_of(value: Any) -> Any:
    """A number that Dynamo handed over, possibly as a tensor."""
    return value.item() if isinstance(value, torch.Tensor) else value


def over_data_alone(graph_module: fx.GraphModule, roles: Sequence[Kind], inputs: Sequence[Any]) -> fx.GraphModule:
    """A module over the data inputs: weights become attributes, numbers become constants. `graph_module` stays as it is.

    `roles` are its `kinds`, asked while Dynamo compiles: afterwards it takes its marks away.
    """
    graph = fx.Graph()
    graph.output(graph.graph_copy(graph_module.graph, {}))
    attributes = {
        str(node.target): attribute(graph_module, str(node.target)) for node in graph.nodes if node.op in ("get_attr", "call_module")
    }
    placeholders = list(graph.find_nodes(op="placeholder"))
    for node, kind, value in zip(placeholders, roles, inputs, strict=True):
        if kind is Kind.WEIGHT:
            # by its own name, which is the same for every size, and so is the program's fingerprint
            with graph.inserting_before(node):
                node.replace_all_uses_with(graph.get_attr(f"weight_{node.target}"))
            attributes[f"weight_{node.target}"] = value
            graph.erase_node(node)
        elif kind is Kind.NUMBER:
            _put_number(graph, node, number_of(value))
    for node in graph.nodes:
        # the rest of the meta data speaks of Dynamo's own fake tensors
        node.meta = {"stack_trace": node.meta["stack_trace"]} if "stack_trace" in node.meta else {}
    return fx.GraphModule(attributes, graph)


def _put_number(graph: fx.Graph, node: fx.Node, number: Any) -> None:
    read = [user for user in node.users if user.op == "call_method" and user.target == "item"]
    for gone in (*read, node):
        for user in [user for user in gone.users if user not in read]:

            def put(other: fx.Node, gone: fx.Node = gone) -> Any:
                return number if other is gone else other

            user.args, user.kwargs = fx.map_arg(user.args, put), fx.map_arg(user.kwargs, put)
        if gone in read:
            graph.erase_node(gone)
    graph.erase_node(node)

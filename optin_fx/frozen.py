"""Statistics of weights: a standardised weight has the mean and the variance of all its entries in it, also of those that are cut.

Weights do not change with the input, and so neither do their statistics: where a cut takes entries away that they count, the smaller
program keeps those of the dense weight as buffers. It computes what the masked program computes, and the weight can still be trained.
Statistics that a cut leaves alone, as those of each filter where filters go, stay computed.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from optin_fx.analysis import Analysis
from optin_fx.applied import Applied
from optin_fx.arguments import argument
from optin_fx.dims import leaves, positions
from optin_fx.plan import Cut

aten = torch.ops.aten


def freeze_statistics(module: fx.GraphModule, cut: Cut) -> None:
    """Write the dense statistics of weights into a copy of the program's graph, wherever a cut would change them."""
    nodes = {node.name: node for node in module.graph.nodes}
    for name, applied in cut.analysis.applied.items():
        cut_away = {leaf for factor in applied.line.frozen for leaf in leaves(applied.factors[factor])} & cut.kept.keys()
        if cut_away and applied.call.op in _REWRITTEN:
            _REWRITTEN[applied.call.op](module, nodes[name], applied, cut)
        elif cut_away:
            _keep_results(module, nodes[name], cut)


def _standardise(module: fx.GraphModule, node: fx.Node, applied: Applied, cut: Cut) -> None:
    """`batch_norm` of a weight `[b, c, ...]` by stored statistics of each c: arithmetic, as an op of that name would follow `train()`."""
    call = applied.call
    x = _value(cut.analysis, call.operands[0].node)
    dims = [d for d in range(x.dim()) if d != 1]
    variance, mean = torch.var_mean(x.double(), dims, correction=0, keepdim=True)
    kept = positions(cut.analysis.axes[call.operands[0].node.name][1], cut.units)
    ones = [1] * (x.dim() - 2)
    with module.graph.inserting_before(node):
        centre, scale = (
            module.graph.get_attr(_buffer(module, _taken(value.to(x.dtype), 1, kept), node))
            for value in (mean, (variance + call["eps"]).rsqrt())
        )
        centred = module.graph.call_function(aten.sub.Tensor, (argument(node, "input", None), centre))
        value = module.graph.call_function(aten.mul.Tensor, (centred, scale))
        for name, op in (("weight", aten.mul.Tensor), ("bias", aten.add.Tensor)):
            if argument(node, name, None) is not None:
                affine = module.graph.call_function(aten.reshape.default, (argument(node, name, None), [-1, *ones]))
                value = module.graph.call_function(op, (value, affine))
    node.target, node.args, node.kwargs = value.target, value.args, value.kwargs  # users read it by its name
    module.graph.erase_node(value)


def _direct(module: fx.GraphModule, node: fx.Node, applied: Applied, cut: Cut) -> None:
    """`_weight_norm`, a direction v times a gain g along one dim, by stored lengths of v."""
    call = applied.call
    v, along = _value(cut.analysis, call.operands[0].node), call.dim(call["dim"])
    length = torch.linalg.vector_norm(v.double(), dim=[d for d in range(v.dim()) if d != along], keepdim=True)
    kept = positions(cut.analysis.axes[call.operands[0].node.name][along], cut.units)
    scale = _taken(length.reciprocal().to(v.dtype), along, kept)
    with module.graph.inserting_before(node):
        unit = module.graph.call_function(aten.mul.Tensor, (argument(node, "v", None), module.graph.get_attr(_buffer(module, scale, node))))
        gain = argument(node, "g", None)
    node.target, node.args, node.kwargs = aten.mul.Tensor, (unit, gain), {}


_REWRITTEN = {aten.batch_norm.default: _standardise, aten._weight_norm.default: _direct}


def _keep_results(module: fx.GraphModule, node: fx.Node, cut: Cut) -> None:
    """A reduction of weights by its results."""
    found, axes = _value(cut.analysis, _dense(cut.analysis, node.name)), cut.analysis.axes[node.name]
    several = isinstance(found, (list, tuple))
    results = []
    for value, dims in zip(found if several else [found], axes if several else [axes], strict=True):
        for dim, axis in enumerate(dims):
            value = _taken(value, dim, positions(axis, cut.units))
        with module.graph.inserting_before(node):
            results.append(module.graph.get_attr(_buffer(module, value, node)))
    node.target, node.args, node.kwargs = _together if several else aten.alias.default, tuple(results), {}


def _together(*results: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return results


def _dense(analysis: Analysis, name: str) -> fx.Node:
    return analysis.applied[name].call.node


def _value(analysis: Analysis, node: fx.Node) -> Any:
    """What a node computes from stored tensors."""
    from optin_fx.offload import read_weight

    if node.op == "get_attr":
        return read_weight(analysis.program, str(node.target)).detach()
    args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: _value(analysis, n))
    with torch.no_grad():
        return node.target(*args, **kwargs)  # type: ignore[operator]


def _taken(value: torch.Tensor, dim: int, kept: torch.Tensor | None) -> torch.Tensor:
    return value if kept is None else value.index_select(dim, kept.to(value.device))


def _buffer(module: fx.GraphModule, value: torch.Tensor, node: fx.Node) -> str:
    name = f"_statistics_{node.name}_{len(module._buffers)}"
    module.register_buffer(name, value)
    return name

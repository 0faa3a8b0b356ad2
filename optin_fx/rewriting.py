"""The two sides of the oracle: `rewrite` slices units away everywhere, `mask` zeroes them where they are consumed."""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx, nn

from optin_fx.analysis import NORMALISED, flat_outputs
from optin_fx.applied import Applied, Consumer
from optin_fx.arguments import argument, set_argument
from optin_fx.attributes import assign, attribute, from_memory_order, in_memory_order, storage_key
from optin_fx.branches import remove_branches
from optin_fx.dims import Axis, leaves, positions, spread
from optin_fx.frozen import freeze_statistics
from optin_fx.plan import Cut, Plan, resolve
from optin_fx.program import Program
from optin_fx.retrace import retrace
from optin_fx.rulebook import TIMES, Resized
from optin_fx.rules.shaping import Scaled


def rewrite(program: Program, plan: Plan) -> Program:
    """Remove the units that a plan does not keep: slice every tensor, re-derive every written size, trace again.

    The result is physically smaller, trainable, saveable and exportable; the program passed in is unchanged.

    Raises:
        PlanError: the plan does not fit the program.
    """
    return retrace(sliced(program, plan), program, provenance={"plan": plan.fingerprint, **plan.provenance})


def mask(program: Program, plan: Plan) -> Program:
    """The same removal at full size: zero the units wherever a contraction consumes them, and take them out of every choice."""
    return retrace(masked(program, plan), program, provenance={"mask": plan.fingerprint, **plan.provenance})


def editable(program: Program) -> fx.GraphModule:
    """A copy of the program's graph that shares its tensors; assertions about sizes, which would go stale, are left out.

    Buffers that the graph does not read (a count of batches) come along, so that the state dict keeps its names.
    """
    source = program.graph_module
    module = fx.GraphModule(source, copy.deepcopy(source.graph))
    own, saved = dict(module.named_buffers(remove_duplicate=False)), source.state_dict()
    for name, buffer in source.named_buffers(remove_duplicate=False):
        if name not in own:
            assign(module, name, buffer, persistent=name in saved)
    for node in list(module.graph.nodes):
        if node.op == "call_function" and "_assert_tensor_metadata" in str(node.target):
            module.graph.erase_node(node)
    return module


def sliced(program: Program, plan: Plan) -> fx.GraphModule:
    """`rewrite` before it is traced again."""
    return slice_graph(program, resolve(program, plan), copied=True)


def masked(program: Program, plan: Plan) -> fx.GraphModule:
    """`mask` before it is traced again."""
    return mask_graph(program, resolve(program, plan))


def slice_graph(program: Program, cut: Cut, *, copied: bool = False) -> fx.GraphModule:
    """A copy of the program's graph without the units that a cut removes.

    Args:
        copied: also tensors that stay whole get memory of their own, so that training the result leaves the program as it was.
    """
    analysis, module = cut.analysis, editable(program)
    freeze_statistics(module, cut)
    _slice_tensors(module, cut, copied=copied)
    nodes = {node.name: node for node in module.graph.nodes}
    for node in list(nodes.values()):
        if node.name in analysis.applied:
            _resize(nodes, node, analysis.applied[node.name], cut, analysis.axes[node.name])
    views_may_copy(module)
    empty = {leaf for leaf, kept in cut.kept.items() if len(kept) == 0}
    if empty:
        remove_branches(module, analysis, empty)
    module.graph.lint()
    module.recompile()
    return module


def mask_graph(program: Program, cut: Cut, *, statistics_of_kept: bool = False) -> fx.GraphModule:
    """A copy of the program's graph that zeroes the units that a cut removes, wherever they are consumed.

    Args:
        statistics_of_kept: norms over a width that the program allows to be cut (`Program.allowing`) see the units that stay only, as they
            do when it is cut; else their statistics count all.
    """
    module = editable(program)
    nodes = {node.name: node for node in module.graph.nodes}
    count = 0
    for consumer in [*cut.analysis.consumers(), *cut.analysis.choosers()]:
        if not any(leaf in cut.kept for leaf in consumer.leaves):
            continue
        vector = consumed(cut, consumer)
        if vector is None:
            continue
        node, applied = nodes[consumer.node], cut.analysis.applied[consumer.node]
        operand = applied.call.operands[consumer.operand]
        source = nodes[operand.node.name]
        fake = source.meta.get("val")
        value = fake if isinstance(fake, torch.Tensor) else attribute(module, str(source.target))
        name = f"_mask_{count}"
        count += 1
        shape = [-1] + [1] * (len(operand.shape) - consumer.dim - 1)
        vector = vector.log() if consumer.choice else vector
        module.register_buffer(name, vector.to(value.dtype).reshape(shape), persistent=True)
        with module.graph.inserting_before(node):
            read = argument(node, operand.name, operand.index)
            op = torch.ops.aten.add.Tensor if consumer.choice else torch.ops.aten.mul.Tensor
            without = module.graph.call_function(op, (read, module.graph.get_attr(name)))
            without.meta["val"] = value
        set_argument(node, operand.name, operand.index, without)
    _narrow_state(module, cut)
    if statistics_of_kept:
        narrow_statistics(module, cut)
    module.graph.lint()
    module.recompile()
    return module


def consumed(cut: Cut, consumer: Consumer) -> torch.Tensor | None:
    """The mask along a consumer's dim: zeros at removed units of the leaves that are summed over there."""
    axis = cut.analysis.axes[cut.analysis.applied[consumer.node].call.operands[consumer.operand].node.name][consumer.dim]
    return spread(axis, lambda leaf: cut.mask(leaf) if leaf in consumer.leaves else None)


def narrow_statistics(module: fx.GraphModule, cut: Cut) -> None:
    """Let every norm over a width that is cut read its kept entries only; at removed ones its result says nothing, and is not read."""
    nodes = {node.name: node for node in module.graph.nodes}
    for name, applied in cut.analysis.applied.items():
        below = {leaf for factor in applied.line.pinned if factor in applied.factors for leaf in leaves(applied.factors[factor])}
        only = Cut(cut.analysis, {leaf: kept for leaf, kept in cut.kept.items() if leaf in below})
        if applied.line.code != NORMALISED or not only.kept:
            continue
        node = nodes[name]
        for operand in applied.call.operands:
            narrow = _selected(module, node, argument(node, operand.name, operand.index), cut.analysis.axes[operand.node.name], only)
            set_argument(node, operand.name, operand.index, narrow)
        _resize(nodes, node, applied, only, cut.analysis.axes[name])
        users = list(node.users)
        wide = _selected(module, node.next, node, cut.analysis.axes[name], only, back=True)
        for user in users:
            user.replace_input_with(node, wide)


def _selected(module: fx.GraphModule, before: fx.Node, value: fx.Node, axes: list[Axis], cut: Cut, *, back: bool = False) -> fx.Node:
    """A node for the kept positions of a value's dims; with `back`, for a value of the full size again, made from the kept positions."""
    for dim, axis in enumerate(axes):
        kept = positions(axis, cut.units)
        if kept is None:
            continue
        if back:
            kept = torch.zeros(axis.root().size, dtype=torch.long).index_copy_(0, kept, torch.arange(len(kept)))
        module.register_buffer(name := f"_kept_{len(module._buffers)}", kept)
        with module.graph.inserting_before(before):
            value = module.graph.call_function(torch.ops.aten.index_select.default, (value, dim, module.graph.get_attr(name)))
    return value


def views_may_copy(module: fx.GraphModule) -> None:
    """Views become reshapes, which copy only where a view is impossible.

    Where an extent shrinks to one, or an attention kernel is another one for other widths, a tensor lies in memory otherwise than in the
    dense program, and what was a view there need not be one here.
    """
    for node in module.graph.nodes:
        if node.target in (torch.ops.aten.view.default, torch.ops.aten._unsafe_view.default):
            node.args, node.kwargs = (*node.args, *node.kwargs.values()), {}
            node.target = torch.ops.aten.reshape.default


def _narrow_state(module: fx.GraphModule, cut: Cut) -> None:
    """A returned cache has no consumer at which a unit could be zeroed, so a masked program, too, hands out the kept units only."""
    end = next(node for node in module.graph.nodes if node.op == "output")
    flat = list(flat_outputs(end))
    for place in cut.analysis.program.state_outputs:
        axes = cut.analysis.axes.get(getattr(flat[place], "name", ""))
        if axes is not None:
            flat[place] = _selected(module, end, flat[place], axes, cut)
    if flat != list(flat_outputs(end)):
        end.args = (type(end.args[0])(flat),)


def _slice_tensors(module: fx.GraphModule, cut: Cut, *, copied: bool) -> None:
    """Replace the tensors of a graph by their kept slices; what was tied is tied again, also a weight and its transpose."""
    memory: dict[Any, torch.Tensor] = {}
    made: dict[Any, torch.Tensor] = {}
    for node in module.graph.nodes:
        if node.op != "get_attr" or node.name not in cut.analysis.axes:
            continue
        tensor = attribute(module, str(node.target))
        key = storage_key(tensor)
        if key not in memory:
            memory[key] = in_memory_order(_slice(tensor, [positions(axis, cut.units) for axis in cut.analysis.axes[node.name]]), tensor)
            if copied and _shares(memory[key], tensor):
                memory[key] = memory[key].clone()
        if _shares(memory[key], tensor):
            continue
        form = (key, tuple(tensor.shape), tensor.stride())
        if form not in made:
            value = from_memory_order(memory[key], tensor)
            made[form] = nn.Parameter(value, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else value
        assign(module, str(node.target), made[form])


def _shares(left: torch.Tensor, right: torch.Tensor) -> bool:
    return left.untyped_storage()._cdata == right.untyped_storage()._cdata


def _slice(tensor: torch.Tensor, kept: list[torch.Tensor | None]) -> torch.Tensor:
    result = tensor.detach()
    for dim, index in enumerate(kept):
        if index is not None:
            result = result.index_select(dim, index.to(tensor.device))
    return result


def _resize(nodes: dict[str, fx.Node], node: fx.Node, applied: Applied, cut: Cut, axes: Any) -> None:
    """Re-derive the sizes that are written in a call's arguments."""
    if applied.rule.resize is None:
        return
    call, analysis = applied.call, cut.analysis
    operands = tuple(tuple(cut.size(axis) for axis in analysis.axes[o.node.name]) for o in call.operands)
    several = isinstance(axes[0], list) if axes else len(call.results) != 1
    results = tuple(tuple(cut.size(axis) for axis in dims) for dims in (axes if several else [axes]))
    if operands == tuple(o.shape for o in call.operands) and list(results) == call.results:
        return
    factors = {name: cut.size(axis) for name, axis in applied.factors.items()}
    resize_call(nodes, node, applied, Resized(operands, results, factors))


def resize_call(
    nodes: Mapping[str, fx.Node], node: fx.Node, applied: Applied, new: Resized, known: Callable[[Any], Any] | None = None
) -> None:
    """Write new extents where a call has the old ones in its arguments, as its rule says.

    Args:
        nodes: the graph's, by name. known: puts a number in place of a written size, where the caller knows it.
    """
    if applied.rule.resize is None:
        return
    changes = dict(applied.rule.resize(applied.call, new) or {})
    if known is not None:
        changes = {name: list(map(known, value)) if isinstance(value, list) else value for name, value in changes.items()}
    times = changes.pop(TIMES, None)
    if times is not None:  # the node keeps its name for the value that users of it read
        with node.graph.inserting_before(node):
            unscaled = node.graph.node_copy(node)
        node.target, node.args, node.kwargs = torch.ops.aten.mul.Tensor, (unscaled, times), {}
        node = unscaled
    target = changes.pop("op", None)
    if target is not None:
        node.target = target
        node.args = tuple(_written(nodes, node, value) for value in changes.values())
        node.kwargs = {}
        return
    for name, value in changes.items():
        set_argument(node, name, None, _written(nodes, node, value))


def _written(nodes: Mapping[str, fx.Node], node: fx.Node, value: Any) -> Any:
    """Sizes as graph values: a scaled SymInt becomes -1 in a reshape, else arithmetic before the node."""
    if not isinstance(value, list):
        return fx.map_arg(value, lambda n: nodes[n.name])
    scaled = [v for v in value if isinstance(v, Scaled)]
    if len(scaled) == 1 and -1 not in value and any(word in str(node.target) for word in ("view", "reshape")):
        value = [-1 if isinstance(v, Scaled) else v for v in value]
    with node.graph.inserting_before(node):
        return [
            _times(node.graph, nodes[v.value.name], v) if isinstance(v, Scaled) else fx.map_arg(v, lambda n: nodes[n.name]) for v in value
        ]


def _times(graph: fx.Graph, size: fx.Node, by: Scaled) -> fx.Node:
    numbers = [arg for arg in size.args if isinstance(arg, int)] if size.target is operator.mul else []
    if len(numbers) == 1 and numbers[0] % by.over == 0:  # 3 heads times the batch, of which 2 heads stay: 2 times the batch
        fewer = numbers[0] // by.over * by.times
        return graph.call_function(operator.mul, tuple(fewer if isinstance(arg, int) else arg for arg in size.args))
    size = graph.call_function(operator.mul, (size, by.times)) if by.times != 1 else size
    return graph.call_function(operator.floordiv, (size, by.over)) if by.over != 1 else size

"""Depth pruning: a residual branch of which no unit is left disappears, and what it still adds is a constant.

A contraction over an empty axis gives its bias, whatever comes in. If that bias only runs through dropout, BatchNorm in eval or a
learned scale into a sum, the sum becomes `other + constant`, and everything that fed the branch is dead code.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod

import torch
from torch import fx, nn
from torch._ops import OpOverload

from optin_fx.analysis import Analysis
from optin_fx.attributes import assign, attribute
from optin_fx.dims import Axis, fold

aten = torch.ops.aten

_CONVS = (aten.conv1d.default, aten.conv2d.default, aten.conv3d.default, aten.conv1d.padding, aten.conv2d.padding, aten.conv3d.padding)
_CONTRACTIONS = {aten.linear.default: 2, aten.addmm.default: 0, **dict.fromkeys(_CONVS, 2)}
"""Contractions with a bias, and the place of the bias among their arguments."""

_PASSING = (aten.dropout.default, aten.dropout_.default, aten.alias.default, aten.contiguous.default, aten.clone.default)
_SUMS = (aten.add.Tensor, aten.add_.Tensor)


@dataclass(frozen=True)
class Branch:
    """The way from a contraction to the sum that its branch ends in.

    Attributes:
        steps: names of the nodes between, in order.
        end: name of the sum. other: name of its other addend.
        channel: dim of the features, counted from the back, so that a constant broadcasts.
    """

    steps: tuple[str, ...]
    end: str
    other: str
    channel: int


def branch_of(node: fx.Node) -> Branch | None:
    """The branch that a contraction ends, or None if its result does anything but run into a sum."""
    if node.target not in _CONTRACTIONS:
        return None
    rank = node.meta["val"].dim()
    channel = -1 if node.target not in _CONVS else 1 - rank
    steps: list[str] = []
    while len(node.users) == 1:
        user = next(iter(node.users))
        if user.target in _SUMS and len(user.all_input_nodes) == 2 and not user.kwargs:
            other = next(n for n in user.all_input_nodes if n is not node)
            fake = other.meta.get("val")
            same = isinstance(fake, torch.Tensor) and fake.shape == user.meta["val"].shape == node.meta["val"].shape
            # an in-place sum also changes its first addend for whoever reads that later
            alone = user.target is aten.add.Tensor or len(user.args[0].users) == 1  # type: ignore[union-attr]
            return Branch(tuple(steps), user.name, other.name, channel) if same and alone else None
        scale = user.target is aten.mul.Tensor and _learned_scale(user, node, channel)
        bn = user.target is aten.batch_norm.default and user.args[0] is node and not user.args[5]
        if not (scale or bn or user.target in _PASSING):
            return None
        steps.append(user.name)
        node = user
    return None


def branch_scale(module: fx.GraphModule, branch: Branch) -> torch.Tensor | None:
    """What a branch multiplies its contraction's result with on the way to the sum, one number or one per channel; None for one.

    BatchNorm and learned scales are linear in eval mode; their offsets are the same for every input and cancel in differences.
    """
    nodes = {node.name: node for node in module.graph.nodes if node.name in branch.steps}
    scale: torch.Tensor | None = None
    for step in branch.steps:
        user = nodes[step]
        factor = None
        if user.target is aten.batch_norm.default:
            weight, variance = (
                attribute(module, str(a.target)).detach() if isinstance(a, fx.Node) else None for a in (user.args[1], user.args[4])
            )
            assert variance is not None
            factor = torch.rsqrt(variance + float(user.args[7]))
            factor = factor if weight is None else factor * weight
        elif user.target is aten.mul.Tensor:
            learned = next(n for n in user.all_input_nodes if n.op == "get_attr")
            factor = attribute(module, str(learned.target)).detach().flatten()
        if factor is not None:
            scale = factor if scale is None else scale * factor
    if scale is None:
        return None
    # a channel that is all but switched off cannot carry the stream's error
    return torch.where(scale.abs() > 1e-3 * scale.abs().max(), scale, torch.inf)


def removable(analysis: Analysis, candidates: Iterable[Axis]) -> set[Axis]:
    """Which of some leaves may lose every unit: all that consumes them becomes empty, and ends a residual branch."""
    nodes = {node.name: node for node in analysis.program.graph_module.graph.nodes}
    found, ends = set(candidates), {}
    consumed: set[Axis] = set()
    for consumer in analysis.consumers():
        own = consumer.leaves & found
        if not own:
            continue
        consumed |= own
        if consumer.node not in ends:
            ends[consumer.node] = branch_of(nodes[consumer.node]) is not None
        axis = analysis.axes[analysis.applied[consumer.node].call.operands[consumer.operand].node.name][consumer.dim]
        for leaf in own:
            if not ends[consumer.node] or _left(axis, leaf):
                found.discard(leaf)
    chosen = {leaf for chooser in analysis.choosers() for leaf in chooser.leaves}
    return (found & consumed) - chosen


def _left(axis: Axis, gone: Axis) -> int:
    """What is left of an axis without one of its leaves."""

    def extent(leaf: Axis) -> int:
        return 0 if leaf is gone else leaf.size

    return fold(axis, extent, lambda values: prod(values), lambda values: sum(values))


def remove_branches(module: fx.GraphModule, analysis: Analysis, empty: set[Axis]) -> None:
    """Take the branches that end in a contraction over an empty axis out of a sliced graph."""
    nodes = {node.name: node for node in module.graph.nodes}
    dense = {node.name: node for node in analysis.program.graph_module.graph.nodes}
    done: set[str] = set()
    for consumer in analysis.consumers():
        if not consumer.leaves & empty or consumer.node in done:
            continue
        done.add(consumer.node)
        branch = branch_of(dense[consumer.node])
        assert branch is not None, "plans are checked: only the ends of residual branches lose every unit"
        constant = _constant(module, nodes, nodes[consumer.node], branch)
        end, other = nodes[branch.end], nodes[branch.other]
        if constant is None:
            end.replace_all_uses_with(other)
        else:
            name = f"_constant_{consumer.node}"
            assign(module, name, nn.Parameter(constant.reshape([-1] + [1] * (-branch.channel - 1))))
            with module.graph.inserting_before(end):
                value = module.graph.get_attr(name)
                total = module.graph.call_function(aten.add.Tensor, (other, value))
                total.meta = dict(end.meta)
            end.replace_all_uses_with(total)
            nodes[branch.end] = total
        last = next((nodes[step] for step in reversed(branch.steps)), nodes[consumer.node])
        module.graph.erase_node(end)
        if constant is None:
            nodes[branch.end] = other
        _sweep(module.graph, last)


def _sweep(graph: fx.Graph, last: fx.Node) -> None:
    """Erase a chain from its end: what nothing reads any more, in-place ops included if they alone read what they change."""
    waiting, erased = [last], set()
    while waiting:
        node = waiting.pop()
        if node in erased or node.users or node.op not in ("call_function", "get_attr"):
            continue
        inputs = node.all_input_nodes
        if (
            node.op == "call_function"
            and isinstance(node.target, OpOverload)
            and node.target._schema.is_mutable
            and len(inputs[0].users) > 1
        ):
            continue
        graph.erase_node(node)
        erased.add(node)
        waiting.extend(inputs)


def _constant(module: fx.GraphModule, nodes: dict[str, fx.Node], node: fx.Node, branch: Branch) -> torch.Tensor | None:
    """What the branch adds per channel: the bias, through the steps on its way."""
    at = _CONTRACTIONS[node.target]  # type: ignore[index]
    bias = node.args[at] if at < len(node.args) else None
    value = attribute(module, str(bias.target)).detach() if isinstance(bias, fx.Node) else None
    for step in branch.steps:
        user = nodes[step]
        if user.target is aten.batch_norm.default:
            weight, shift, mean, variance = (
                attribute(module, str(a.target)).detach() if isinstance(a, fx.Node) else None for a in user.args[1:5]
            )
            assert mean is not None
            assert variance is not None
            value = ((torch.zeros_like(mean) if value is None else value) - mean) * torch.rsqrt(variance + float(user.args[7]))  # type: ignore[arg-type]
            value = value if weight is None else value * weight
            value = value if shift is None else value + shift
        elif user.target is aten.mul.Tensor and value is not None:
            scale = next(n for n in user.all_input_nodes if n.op == "get_attr")
            value = value * attribute(module, str(scale.target)).detach().flatten()
    return value


def _learned_scale(user: fx.Node, node: fx.Node, channel: int) -> bool:
    """A multiplication by a parameter of one entry, or of one per channel (layer scale)."""
    if len(user.args) != 2 or len(user.all_input_nodes) != 2:
        return False
    other = user.args[1] if user.args[0] is node else user.args[0]
    if not isinstance(other, fx.Node) or other.op != "get_attr":
        return False
    shape = tuple(other.meta["val"].shape)
    per_channel = len(shape) >= -channel and shape[channel] == node.meta["val"].shape[channel]
    return prod(shape) == 1 or (per_channel and prod(shape) == shape[channel])

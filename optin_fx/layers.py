"""Where a model's layers end, on an arbitrary graph: the tensors whose disturbance the trajectory criterion measures.

A *block* is the deepest numbered container (`encoder.layer.3`, `layer1.0`, `layers.0.blocks.1`) that owns at least two
contractions, read off parameter names, so that it also holds for programs that were rewritten. Its output is reached from
its last contraction by following single-use nodes up to the branch point of the residual stream, the next block or
the model's head. A model without numbered containers has the sums of activations as its layers, else its contractions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch

import torch
from torch import fx

from optin_fx.analysis import Analysis, analyse
from optin_fx.dims import leaves
from optin_fx.errors import ScoreError
from optin_fx.groups import groups_of, leaf_names
from optin_fx.interpreter import batch_dim
from optin_fx.program import Program


@dataclass(frozen=True)
class Layer:
    """A layer's output.

    Attributes:
        name: the block's module path, or the node's name.
        node: name of the node that computes the output.
        feature: dim of the output that holds the features; all dims but this and the batch are tokens or positions.
    """

    name: str
    node: str
    feature: int

    def rows(self, value: torch.Tensor) -> torch.Tensor:
        """The output as `[batch, tokens, features]`."""
        value = value.movedim(self.feature, -1)
        return value.reshape(value.shape[0], -1, value.shape[-1])


def layers_of(program: Program) -> tuple[Layer, ...]:
    """The layers of a program in graph order; kept with its analysis."""
    return analyse(program).once(_all)


def _all(analysis: Analysis) -> tuple[Layer, ...]:
    return tuple(_find(analysis))


def chosen_layers(program: Program, patterns: Sequence[str] = (), depth: str = "sum") -> tuple[Layer, ...]:
    """The layers that a criterion looks at.

    Args:
        patterns: shell patterns (`encoder.layer.*`) of layers' names, of module paths or of nodes; none stands for `layers_of(program)`.
        depth: "last" leaves only the last one; anything else all.

    Raises:
        ScoreError: a pattern fits nothing.
    """
    found = list(layers_of(program))
    if patterns:
        found = list({layer.node: layer for pattern in patterns for layer in _fitting(program, pattern)}.values())
        found = _in_order(program, found)
    return tuple(found[-1:] if depth == "last" else found)


def later_layers(program: Program, layers: Sequence[Layer]) -> Mapping[str, int]:
    """How many layers lie behind a place where each group is consumed: those that removing its units can change."""
    reached: dict[str, int] = {}  # a bit for every layer
    bits = {layer.node: 1 << i for i, layer in enumerate(layers)}
    for node in reversed(program.graph_module.graph.nodes):
        reached[node.name] = bits.get(node.name, 0)
        for user in node.users:
            reached[node.name] |= reached[user.name]
    names = leaf_names(analyse(program))
    found: dict[str, int] = {}
    for consumer in analyse(program).consumers():
        for leaf in consumer.leaves:
            if leaf in names:
                found[names[leaf]] = found.get(names[leaf], 0) | reached[consumer.node]
    return {name: mask.bit_count() for name, mask in found.items()}


def _fitting(program: Program, pattern: str) -> list[Layer]:
    known = [layer for layer in layers_of(program) if fnmatch(layer.name, pattern) or layer.node == pattern]
    if known:
        return known
    analysis = analyse(program)
    nodes = {node.name: node for node in program.graph_module.graph.nodes}
    found = [(name, node) for name, node in nodes.items() if fnmatch(name, pattern) and node.op == "call_function"]
    if not found:  # modules that are no blocks of their own: they end at their last contraction
        last: dict[str, str] = {}
        for name, weight in _weights(analysis).items():
            parts = weight.split(".")[:-1]
            for path in (".".join(parts[: i + 1]) for i in range(len(parts))):
                if fnmatch(path, pattern):
                    last[path] = name
        found = [(path, _end_of_block(nodes[name], path)) for path, name in last.items()]
    layers = [Layer(name, node.name, feature) for name, node in found if (feature := _feature(analysis, node)) is not None]
    if not layers:
        raise ScoreError(
            f"no layer, module or node fits {pattern!r}",
            at=f"the layers are {', '.join(layer.name for layer in layers_of(program)[:6])}, ...",
            fix="optin-fx score MODEL --show-layers lists them; nodes must have the batch as their first dim",
        )
    return layers


def _in_order(program: Program, layers: Iterable[Layer]) -> list[Layer]:
    order = {node.name: i for i, node in enumerate(program.graph_module.graph.nodes)}
    return sorted(layers, key=lambda layer: order[layer.node])


def _weights(analysis: Analysis) -> dict[str, str]:
    """Contractions by node name, with the parameter that they read."""
    return {name: weight for name, applied in analysis.applied.items() if applied.line.macs and (weight := _weight(applied.call.node))}


def _find(analysis: Analysis) -> list[Layer]:
    graph = analysis.program.graph_module.graph
    nodes = {node.name: node for node in graph.nodes}
    weights = _weights(analysis)
    prefixes = Counter(prefix for weight in weights.values() for prefix in _numbered(weight))
    last: dict[str, str] = {}
    for name, weight in weights.items():
        block = next((p for p in _numbered(weight) if prefixes[p] >= 2), None)
        if block is not None:
            last[block] = name
    found = [(block, _end_of_block(nodes[name], block)) for block, name in last.items()]
    if not found:
        sums = [n for n, a in analysis.applied.items() if "residual" in a.line.roles.values()]
        found = [(name, nodes[name]) for name in sums or weights]
    layers = [(name, node, _feature(analysis, node)) for name, node in found]
    return _in_order(analysis.program, [Layer(name, node.name, feature) for name, node, feature in layers if feature is not None])


def _weight(node: fx.Node) -> str | None:
    return next((str(n.target) for n in node.all_input_nodes if n.op == "get_attr"), None)


def _numbered(parameter: str) -> list[str]:
    """Prefixes of a parameter's name that end in a number, deepest first."""
    parts = parameter.split(".")[:-1]
    return [".".join(parts[: i + 1]) for i in reversed(range(len(parts))) if parts[i].isdigit()]


def _end_of_block(node: fx.Node, block: str) -> fx.Node:
    while True:
        users = [user for user in node.users if user.op == "call_function" and isinstance(user.meta.get("val"), torch.Tensor)]
        if len(users) != 1 or len(node.users) != 1:
            return node
        user = users[0]
        foreign = [n for n in user.all_input_nodes if n.op == "get_attr" and not str(n.target).startswith(block + ".")]
        if foreign or user.meta["val"].shape != node.meta["val"].shape:
            return node
        node = user


def _feature(analysis: Analysis, node: fx.Node) -> int | None:
    """The dim whose axis most parameters share, if the batch is a dim of its own in front."""
    axes = analysis.axes.get(node.name)
    if not axes or isinstance(axes[0], list) or len(axes) < 2:
        return None
    where = batch_dim(analysis, axes)
    if where is None or where != (0, 1):
        return None
    names, members = leaf_names(analysis), {g.name: len(g.members) for g in groups_of(analysis)}
    counts = {leaf: members[names[leaf]] for axis in axes for leaf in leaves(axis) if leaf in names}
    ranked = [(max((counts.get(leaf, 0) for leaf in leaves(axis)), default=0), dim) for dim, axis in enumerate(axes) if dim > 0]
    most, dim = max(ranked)
    return dim if most > 0 else None

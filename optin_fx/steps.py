"""What each node that a gate reaches does with changes: worked out once per group, followed for every unit."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

from optin_fx.applied import Consumer
from optin_fx.linearity import JOINS, Carries, op_name, without_writing


class Action(Enum):
    """How the change of a node's result is found.

    GATED: the node reads the group. ALONE, SUM, PRODUCT: it is linear in what changed, see `Carries`. DIFFERENCE: `f(x + d) - f(x)`.
    """

    GATED = auto()
    ALONE = auto()
    SUM = auto()
    PRODUCT = auto()
    DIFFERENCE = auto()


@dataclass(frozen=True)
class Step:
    """A node that a gate reaches.

    Attributes:
        target: what it calls; writes nowhere.
        changed: operands that change.
        consumers: places where it reads the group.
        done: changes that no later step needs.
        own: changed operands whose memory no later step reads, which may therefore be written into.
    """

    node: fx.Node
    action: Action
    target: Callable[..., Any]
    changed: tuple[fx.Node, ...]
    consumers: tuple[Consumer, ...]
    done: tuple[fx.Node, ...]
    own: frozenset[fx.Node]


def steps_behind(
    nodes: Sequence[fx.Node],
    consumers: Mapping[str, Sequence[Consumer]],
    carries: Mapping[fx.Node, Carries],
    kept: Collection[str],
) -> tuple[Step, ...]:
    """The nodes that a gate reaches, in graph order.

    Args:
        nodes: of the graph; the last one is its output.
        consumers: of the group, by node.
        kept: names of nodes whose changes are wanted, and so stay as they are.
    """
    actions: dict[fx.Node, Action] = {}
    for node in nodes[:-1]:
        changed = [value for value in node.all_input_nodes if value in actions]
        if node.name in consumers or changed:
            actions[node] = Action.GATED if node.name in consumers else _action(node, changed, carries[node])
    last = {value: node for node in [*actions, nodes[-1]] for value in node.all_input_nodes if value in actions}
    memory = _Memory(actions, last, {node for node in actions if node.name in kept or last.get(node) is nodes[-1]})
    return tuple(
        Step(
            node,
            action,
            without_writing(node) or node.target,  # type: ignore[arg-type]  # a call_function's target is callable
            tuple(value for value in node.all_input_nodes if value in actions),
            tuple(consumers.get(node.name, ())),
            tuple(value for value in {node, *node.all_input_nodes} if value in actions and last.get(value, node) is node),
            memory.owned_by(node),
        )
        for node, action in actions.items()
    )


def places(node: fx.Node, operand: fx.Node) -> int:
    """How often a node reads an operand."""
    flat = pytree.tree_leaves((node.args, dict(node.kwargs)), is_leaf=lambda leaf: isinstance(leaf, fx.Node))
    return sum(leaf is operand for leaf in flat)


def alike(node: fx.Node) -> bool:
    """Whether all tensors that a node reads have one shape."""
    shapes = [v.meta["val"].shape if isinstance(v.meta.get("val"), torch.Tensor) else v.name for v in node.all_input_nodes]
    return len(set(map(str, shapes))) == 1


def linear_in(node: fx.Node, operand: fx.Node) -> bool:
    """Whether a product is linear in an operand: it is not in a divisor, and a bias is no factor."""
    name = op_name(node)
    if name == "addmm":
        return operand is not node.args[0]
    return not name.startswith("div") or operand is node.args[0]


def _action(node: fx.Node, changed: Sequence[fx.Node], kind: Carries) -> Action:
    if kind is Carries.ALONE:
        return Action.ALONE
    if kind is Carries.SUM:
        return Action.SUM
    alone = kind is Carries.PRODUCT and len(changed) == 1 and places(node, changed[0]) == 1 and linear_in(node, changed[0])
    return Action.PRODUCT if alone else Action.DIFFERENCE


class _Memory:
    """Which changes may lie in the same memory, and who reads it last."""

    def __init__(self, actions: Mapping[fx.Node, Action], last: Mapping[fx.Node, fx.Node], kept: set[fx.Node]) -> None:
        self.order = {node: i for i, node in enumerate(actions)}
        self.last, self.block = last, dict[fx.Node, fx.Node]()
        self.members: dict[fx.Node, list[fx.Node]] = {}
        self.shared: set[fx.Node] = set()
        for node, action in actions.items():
            sources = [value for value in node.all_input_nodes if value in actions]
            passes = action is Action.ALONE or (action is Action.SUM and len(sources) == 1 and op_name(node) not in JOINS)
            self.block[node] = block = self.block[sources[0]] if passes else node
            self.members.setdefault(block, []).append(node)
            overlaps = op_name(node) in _OVERLAPPING or (action is Action.SUM and not alike(node))
            if node in kept or overlaps:
                self.shared.add(block)

    def owned_by(self, node: fx.Node) -> frozenset[fx.Node]:
        """Operands in memory that only this node still reads, and that it reads through them alone."""
        read = [value for value in node.all_input_nodes if value in self.block]
        blocks = [self.block[value] for value in read]
        return frozenset(
            value
            for value, block in zip(read, blocks, strict=True)
            if block not in self.shared
            and blocks.count(block) == 1
            and all(self.order[self.last.get(member, member)] <= self.order[node] for member in self.members[block])
        )


_OVERLAPPING = {"expand", "expand_as", "repeat", "diagonal", "unfold", "im2col", "broadcast_to"}
"""Ops whose result may hold one entry of memory in several places."""

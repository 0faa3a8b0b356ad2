"""One walk behind a gate, on changes from a dense run; see `optin_fx.suffix`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

from optin_fx.applied import Consumer
from optin_fx.arguments import read, write
from optin_fx.interpreter import Runner
from optin_fx.linearity import BIAS, FRESH, IN_PLACE, JOINS, Carries, op_name
from optin_fx.products import Products
from optin_fx.steps import Action, Step, alike, linear_in, places


@dataclass(frozen=True)
class New:
    """A value that took the place of one that cannot be subtracted from (integers, truth values)."""

    value: Any


class Walk:
    """Follows the steps behind a gate.

    Args:
        runner: knows the gate.
        dense: what a dense run left behind, by node.
        dtype: of the model.
    """

    def __init__(
        self, runner: Runner, dense: Mapping[fx.Node, Any], carries: Mapping[fx.Node, Carries], products: Products, dtype: torch.dtype
    ) -> None:
        self.runner, self.dense, self.carries, self.products, self.dtype = runner, dense, carries, products, dtype
        self.changes: dict[fx.Node, Any] = {}
        self.actions = {
            Action.GATED: self._gated,
            Action.ALONE: self._alone,
            Action.SUM: self._sum,
            Action.PRODUCT: lambda step: self._product(step, step.changed[0], self.changes[step.changed[0]]),
            Action.DIFFERENCE: self._difference,
        }

    def follow(self, steps: tuple[Step, ...], wanted: frozenset[fx.Node]) -> dict[fx.Node, Any]:
        """The changes of the nodes that are wanted and reached."""
        found: dict[fx.Node, Any] = {}
        for step in steps:
            self.changes[step.node] = change = self.actions[step.action](step)
            if step.node in wanted:
                found[step.node] = change
            for value in step.done:
                del self.changes[value]
        return found

    def _alone(self, step: Step) -> Any:
        return self._call(step, *self._fetch(step.node, self.changes))

    def _gated(self, step: Step) -> Any:
        """The change of a node that reads the group."""
        node, first = step.node, step.consumers[0]
        operands = self.runner.analysis.applied[node.name].call.operands
        operand = operands[first.operand].node
        linear = self.carries[node] is Carries.PRODUCT and places(node, operand) == 1 and linear_in(node, operand)
        if linear and len(step.consumers) == 1 and not step.changed and not first.choice:
            return self._masked(step, first, operand)
        args, kwargs = self._fetch(node, {value: self._changed(step, value) for value in step.changed})
        for consumer in step.consumers:
            place = operands[consumer.operand]
            value = self.runner.gated(consumer, read(node, args, kwargs, place.name, place.index))
            write(node, args, kwargs, place.name, place.index, value)
        return self._minus_dense(step, self._call(step, args, kwargs))

    def _masked(self, step: Step, consumer: Consumer, operand: fx.Node) -> Any:
        """Of a product, whose operand changes where the gate is not one: only that part is multiplied, where the op can be cut so."""
        value = self._dense(operand)
        gate = self.runner.gate_of(consumer, value)
        if gate is None:
            return torch.zeros_like(self._dense(step.node))
        dim = weight_dim(step.node, operand, consumer.dim, value.dim())
        if dim is None:
            return self._product(step, operand, value * (gate - 1))
        at = (gate != 1).movedim(consumer.dim, 0).flatten(1).any(1).nonzero().flatten()
        change = value.index_select(consumer.dim, at) * (gate.index_select(consumer.dim, at) - 1)
        weight = step.node.args[1]
        assert isinstance(weight, fx.Node)
        args, kwargs = self._fetch(step.node, {operand: change, weight: self._dense(weight).index_select(dim, at)})
        return self._call(step, *_without_bias(step.node, args, kwargs))

    def _product(self, step: Step, operand: fx.Node, change: torch.Tensor) -> Any:
        """An op that is linear in the operand that changed."""
        node, name = step.node, op_name(step.node)
        if name == "linear" and operand is node.args[0] and change.dim() > 1:
            source = node.args[1]
            assert isinstance(source, fx.Node)
            return self.products(change, self._dense(source).detach(), source)
        if change.dtype is torch.bfloat16:  # of an earlier product; other factors are as precise as the model
            change = change.to(self.dtype)
        args, kwargs = _without_bias(node, *self._fetch(node, {operand: change}))
        return torch.ops.aten.mm.default(*args[1:3]) if name == "addmm" else self._call(step, args, kwargs)

    def _sum(self, step: Step) -> Any:
        node = step.node
        if op_name(node) in JOINS:
            zeros = {v: torch.zeros_like(self.dense[v]) for v in node.all_input_nodes if v not in self.changes}
            return self._call(step, *self._fetch(node, {**zeros, **{v: self.changes[v] for v in step.changed}}))
        left, right = (v if isinstance(v, fx.Node) and v in self.changes else None for v in node.args[:2])
        sign = (-1 if op_name(node).startswith("sub") else 1) * node.kwargs.get("alpha", 1)  # type: ignore[operator]
        if left is not None and right is not None:
            total = self._plus(step, left, right, sign)
        else:
            total = self.changes[step.changed[0]]
            total = total if sign == 1 or left is not None else total * sign
        return total if alike(node) else torch.broadcast_to(total, self._full_shape(node, total))

    def _plus(self, step: Step, left: fx.Node, right: fx.Node, sign: Any) -> torch.Tensor:
        """`d + sign e`, in the memory of one of them where that is free and precise enough."""
        d, e = self.changes[left], self.changes[right]
        if _fits(step, left, d, e):
            return d.add_(e, alpha=sign)
        if sign == 1 and _fits(step, right, e, d):
            return e.add_(d)
        return torch.add(d, e, alpha=sign)

    def _full_shape(self, node: fx.Node, total: torch.Tensor) -> torch.Size:
        shapes = [value.shape for v in node.all_input_nodes if isinstance(value := self._dense(v), torch.Tensor)]
        return torch.broadcast_shapes(total.shape, *shapes)

    def _difference(self, step: Step) -> Any:
        """`f(x + d) - f(x)`."""
        args, kwargs = self._fetch(step.node, {value: self._changed(step, value) for value in step.changed})
        return self._minus_dense(step, self._call(step, args, kwargs))

    def _minus_dense(self, step: Step, new: Any) -> Any:
        dense = self.dense[step.node]
        if isinstance(new, torch.Tensor) and new.is_floating_point() and op_name(step.node) in FRESH:
            return new.sub_(dense)  # no memory but its own is written
        return pytree.tree_map(_minus, new, dense)

    def _changed(self, step: Step, node: fx.Node) -> Any:
        """`x + d`, in the memory of d where nobody needs that any more."""
        change, dense = self.changes[node], self._dense(node)
        if isinstance(change, torch.Tensor) and _fits(step, node, change, dense):
            return change.add_(dense)
        return pytree.tree_map(_added, change, dense)

    def _dense(self, node: fx.Node) -> Any:
        value = self.dense.get(node)
        return value if self.runner.store is None else self.runner.store.fetched(value)

    def _fetch(self, node: fx.Node, instead: Mapping[fx.Node, Any]) -> tuple[list[Any], dict[str, Any]]:
        """Arguments of a node's call, dense but for the given ones."""
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: instead[n] if n in instead else self._dense(n))
        return list(args), dict(kwargs)

    def _call(self, step: Step, args: list[Any], kwargs: dict[str, Any]) -> Any:
        """The op; on changed values, which are nobody else's, in place where there is such a form of it."""
        if step.action is Action.DIFFERENCE and step.target in IN_PLACE:
            return IN_PLACE[step.target](*args, **kwargs)
        return step.target(*args, **kwargs)


def weight_dim(node: fx.Node, operand: fx.Node, dim: int, dims: int) -> int | None:
    """The dim of a layer's weight that meets an operand's dim, so that a few entries of both give their part of the result."""
    name = op_name(node)
    if operand is not node.args[0] or len(node.args) < 2 or not isinstance(node.args[1], fx.Node):
        return None
    if name == "linear" and dim == dims - 1:
        return 1
    groups = node.args[6] if len(node.args) > 6 else node.kwargs.get("groups", 1)
    return 1 if name in ("conv1d", "conv2d", "conv3d") and dim == 1 and groups == 1 else None


def _without_bias(node: fx.Node, args: list[Any], kwargs: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    place = BIAS.get(op_name(node))
    if place is not None and place < len(args):
        args[place] = None
    kwargs.pop("bias", None)
    return args, kwargs


def _fits(step: Step, node: fx.Node, change: torch.Tensor, other: Any) -> bool:
    """Whether the sum with another tensor can take the place of a change."""
    if node not in step.own or not isinstance(other, torch.Tensor):
        return False
    return change.shape == other.shape and torch.promote_types(change.dtype, other.dtype) is change.dtype


def _minus(new: Any, old: Any) -> Any:
    return new - old if isinstance(new, torch.Tensor) and new.is_floating_point() else New(new)


def _added(change: Any, old: Any) -> Any:
    return change.value if isinstance(change, New) else old + change

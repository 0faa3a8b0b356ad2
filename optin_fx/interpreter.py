"""Run a program node by node, with a hand on every place where units are consumed.

Gates are vectors of ones, one per group, multiplied in wherever the group is consumed. A gate of zero *is* the removal of
the unit; the gradient at a gate is what removing the unit would change, to first order. Gates with a leading batch dim
give every sample its own gate, and so per-sample gradients from a single backward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

from optin_fx.analysis import Analysis, Consumer, analyse
from optin_fx.arguments import read, write
from optin_fx.data import Batch
from optin_fx.dims import Axis, leaves, spread
from optin_fx.groups import groups_of, leaf_names
from optin_fx.offload import store_of
from optin_fx.program import Program
from optin_fx.rulebook import is_left

Observe = Callable[[Consumer, torch.Tensor, Callable[[int], torch.Tensor]], None]
"""Called with a consumer, the gated tensor that it is about to read, and a function that gives the call's other operands by number."""


def flat_inputs(program: Program, batch: Batch) -> list[Any]:
    """The batch's leaves in the order of the graph's placeholders."""
    kwargs = {name: batch.kwargs[name] for name in program.kwargs}
    return pytree.tree_leaves((batch.args, kwargs), is_leaf=lambda x: x is None)


def device_of(program: Program) -> torch.device:
    """Where a program's weights are; the CPU for one without any."""
    store = store_of(program)
    if store is not None:
        return store.device
    return next((tensor.device for tensor in program.tensors.values()), torch.device("cpu"))


class Runner(fx.Interpreter):
    """Executes a program's graph; see the module's text.

    Args:
        program: what to run.
        gates: group name to a vector `[extent]` or `[batch, extent]`.
        observe: called at every consumer; see `Observe`.
        taps: node names whose results are to be kept in `tapped`.
    """

    def __init__(
        self,
        program: Program,
        *,
        gates: Mapping[str, torch.Tensor] | None = None,
        observe: Observe | None = None,
        taps: tuple[str, ...] = (),
    ) -> None:
        super().__init__(program.graph_module, garbage_collect_values=True)
        self.program, self.analysis = program, analyse(program)
        self.observe, self.wanted = observe, frozenset(taps)
        self.use(gates or {})
        self.tapped: dict[str, torch.Tensor] = {}
        self.table = readers_by_node(self.analysis)
        self.store = store_of(program)

    def __call__(self, batch: Batch) -> list[Any]:
        """Run one batch; returns the flat outputs."""
        self.tapped = {}
        with self.store.saving() if self.store is not None and torch.is_grad_enabled() else nullcontext():
            outputs = self.run(*flat_inputs(self.program, batch), enable_io_processing=False)
        return list(outputs) if isinstance(outputs, (list, tuple)) else [outputs]

    def fetch_args_kwargs_from_env(self, n: fx.Node) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Arguments of a node's call; weights that are away are fetched."""
        args, kwargs = super().fetch_args_kwargs_from_env(n)
        if self.store is None:
            return args, kwargs
        found: tuple[tuple[Any, ...], dict[str, Any]] = pytree.tree_map(self.store.fetched, (args, kwargs))
        return found

    def run_node(self, n: fx.Node) -> Any:
        """Gate and show what a contraction reads, then execute it."""
        consumers = self.table.get(n.name)
        if not consumers or not (self.by_leaf or self.observe):
            result = super().run_node(n)
        else:
            fetched, named = self.fetch_args_kwargs_from_env(n)
            args, kwargs = list(fetched), dict(named)
            operands = self.analysis.applied[n.name].call.operands

            def operand_of(number: int) -> torch.Tensor:
                found: torch.Tensor = read(n, args, kwargs, operands[number].name, operands[number].index)
                return found

            for consumer in consumers:
                operand = operands[consumer.operand]
                value = self.gated(consumer, operand_of(consumer.operand))
                if self.observe is not None and not (consumer.choice or consumer.worth):
                    self.observe(consumer, value, operand_of)
                write(n, args, kwargs, operand.name, operand.index, value)
            result = self.call_function(n.target, tuple(args), kwargs)
        if n.name in self.wanted:
            self.tapped[n.name] = result
        return result

    def gated(self, consumer: Consumer, value: torch.Tensor) -> torch.Tensor:
        """The consumer's operand times its gates."""
        gate = self.gate_of(consumer, value)
        return value if gate is None else consumer.gated(value, gate)

    def gate_of(self, consumer: Consumer, value: torch.Tensor) -> torch.Tensor | None:
        """What the consumer's operand is multiplied with, with as many dims; None where no gate is."""
        axes = self.analysis.axes[self.analysis.applied[consumer.node].call.operands[consumer.operand].node.name]
        vector = spread(axes[consumer.dim], lambda leaf: self.by_leaf.get(leaf) if leaf in consumer.leaves else None)
        if vector is None:
            return None
        shape = [1] * value.dim()
        where = batch_dim(self.analysis, axes) if vector.dim() > 1 else None
        if where is None:  # nothing in this operand belongs to one sample
            vector = vector.mean(0, keepdim=True) if vector.dim() > 1 else vector.unsqueeze(0)
        else:
            dim, inner = where
            vector = vector.repeat_interleave(inner, dim=0) if inner > 1 else vector
            shape[dim] = vector.shape[0]
        shape[consumer.dim] = vector.shape[1]
        return vector.to(value.dtype).reshape(shape)

    def use(self, gates: Mapping[str, torch.Tensor]) -> None:
        """Run with these gates from now on."""
        self.gates = dict(gates)
        self.by_leaf = {leaf: self.gates[name] for leaf, name in leaf_names(self.analysis).items() if name in self.gates}


def batch_dim(analysis: Analysis, axes: list[Axis]) -> tuple[int, int] | None:
    """Which dim holds the batch as its outermost factor, and how many rows of it each sample has."""
    roots = {root for axis in analysis.batch for root in leaves(axis)}
    for dim, axis in enumerate(axes):
        below = leaves(axis)
        if below and below[0] in roots and axis.root().sign != "+":
            inner = 1
            for leaf in below[1:]:
                inner *= leaf.hint
            return dim, inner
    return None


def consumers_by_node(analysis: Analysis) -> dict[str, list[Consumer]]:
    """Consumers of prunable units, by node."""
    return analysis.once(_consumers_by_node)


def readers_by_node(analysis: Analysis) -> dict[str, list[Consumer]]:
    """The same with the places where prunable units are chosen among, or their worth looked up: all that a gate acts on."""
    return analysis.once(_readers_by_node)


def _lookups(analysis: Analysis) -> Iterable[Consumer]:
    """Places where the worth of chosen units is looked up by position, as the choice itself hands out positions only.

    A router may rank experts by one score and weigh them by another (DeepSeek-V3: with and without a correction). A gate at the choice then
    has no gradient, for nothing of it comes out but positions; here it has one.
    """
    for name, applied in analysis.applied.items():
        for number, (_, factor) in applied.line.told.items():
            told = analysis.references.told(applied.call, number)
            if told is None or not applied.operands[0] or not is_left(analysis.applied[told.by].call.node, 0):
                continue
            axes = analysis.axes[applied.call.operands[0].node.name]
            units = frozenset(leaf for leaf in leaves(applied.factors[factor]) if leaf.size > 1)
            dims = [dim for dim, term in enumerate(applied.operands[0]) if factor in term.names()]
            if dims and batch_dim(analysis, axes) is not None:  # a weight that is looked up holds no worth
                yield Consumer(name, 0, dims[0], units, worth=True)


def _consumers_by_node(analysis: Analysis) -> dict[str, list[Consumer]]:
    return _by_node(analysis, analysis.consumers())


def _readers_by_node(analysis: Analysis) -> dict[str, list[Consumer]]:
    return _by_node(analysis, [*analysis.consumers(), *analysis.choosers(), *_lookups(analysis)])


def _by_node(analysis: Analysis, consumers: Iterable[Consumer]) -> dict[str, list[Consumer]]:
    free, names = {g.name for g in groups_of(analysis).free}, leaf_names(analysis)
    found: dict[str, list[Consumer]] = {}
    for consumer in consumers:
        own = frozenset(leaf for leaf in consumer.leaves if names.get(leaf) in free)
        if own:
            found.setdefault(consumer.node, []).append(replace(consumer, leaves=own))
    return found

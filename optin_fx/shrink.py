"""When `verify` says NOT EQUAL: which node is the first to differ, and which groups are to blame.

`bisect` runs the sliced and the masked graph side by side and compares node by node: what the small program computes must be the
slice, at the kept positions, of what the masked one computes. `minimise` drops groups from a plan while the two still disagree.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

from optin_fx.choices import Choosing, Following
from optin_fx.data import Batch
from optin_fx.dims import SYMBOLIC, positions
from optin_fx.groups import source_of
from optin_fx.interpreter import flat_inputs
from optin_fx.plan import Cut, Plan, resolve
from optin_fx.program import Program
from optin_fx.rewriting import mask_graph, slice_graph
from optin_fx.verifying import TOLERANCE, agreement


@dataclass(frozen=True)
class Disagreement:
    """The first node at which the small program is not the slice of the masked one.

    Attributes:
        node: its name. op: its overload. line: the rule line that was applied to it, "" where it has none.
        what: how they differ: shapes, a relative difference, or the error that running the node raised.
        source: the user's source line, as torch.export recorded it.
    """

    node: str
    op: str
    line: str
    what: str
    source: str = ""

    def __str__(self) -> str:
        rule = f", rule {self.line}" if self.line else ""
        return f"%{self.node} ({self.op}{rule}): {self.what}" + (f"\n  at  {self.source}" if self.source else "")


def bisect(program: Program, plan: Plan) -> Disagreement | None:
    """The first node where the masked and the sliced program disagree on the example inputs; None if no node does.

    Entries of a tensor at removed units are not compared: the small program does not have them.

    Raises:
        PlanError: the plan does not fit the program.
    """
    cut = resolve(program, plan)
    inputs = flat_inputs(program, Batch(program.args, program.kwargs))
    wide = _Recorder(mask_graph(program, cut))
    wide.run(*inputs, enable_io_processing=False)
    small = _Comparer(slice_graph(program, cut), wide, cut)
    try:
        small.run(*inputs, enable_io_processing=False)
    except _Found as found:
        return found.disagreement
    except Exception as error:  # noqa: BLE001 any op may refuse the sizes of a wrong slice, each with a type of its own
        return _disagreement(cut, small.current, f"{type(error).__name__}: {str(error).splitlines()[0]}")
    return None


def minimise(program: Program, plan: Plan, disagrees: Callable[[Program, Plan], bool] | None = None) -> Plan:
    """A plan with as few groups as still disagree, and each of them with as many units as still disagree.

    Args:
        disagrees: the property to keep; by default that `bisect` finds a node.

    Raises:
        PlanError: the plan does not fit the program.
    """
    check = disagrees or (lambda program, plan: bisect(program, plan) is not None)
    if not check(program, plan):
        return plan
    step = max(1, len(plan.kept) // 2)
    while True:
        names = list(plan.kept)
        for start in range(0, len(names), step):
            fewer = _without(plan, names[start : start + step])
            if fewer.kept and check(program, fewer):
                plan = fewer
        if step == 1:
            break
        step = max(1, step // 2)
    for name in list(plan.kept):
        for one in range(plan.extents[name]):  # remove a single unit only
            simpler = replace(plan, kept={**plan.kept, name: tuple(u for u in range(plan.extents[name]) if u != one)})
            if check(program, simpler):
                plan = simpler
                break
    return plan


def _without(plan: Plan, names: list[str]) -> Plan:
    return replace(
        plan,
        kept={name: units for name, units in plan.kept.items() if name not in names},
        extents={name: extent for name, extent in plan.extents.items() if name not in names},
        predicted={},
    )


class _Found(Exception):
    def __init__(self, disagreement: Disagreement) -> None:
        self.disagreement = disagreement


class _Recorder(Choosing):
    """Runs a graph and keeps every value by node name."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.values: dict[str, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        with torch.no_grad():
            value = super().run_node(n)
        # an op in place must not change what was recorded before it
        self.values[n.name] = pytree.tree_map_only(torch.Tensor, torch.clone, value)
        return value


class _Comparer(Following):
    """Runs the sliced graph with the masked one's choices, as `verify` does, and compares node by node."""

    def __init__(self, module: fx.GraphModule, wide: _Recorder, cut: Cut) -> None:
        super().__init__(module, wide)
        self.wide, self.cut, self.current = wide, cut, next(iter(module.graph.nodes))

    def run_node(self, n: fx.Node) -> Any:
        self.current = n
        with torch.no_grad():
            value = super().run_node(n)
        if n.op == "call_function":
            _compare(self.cut, n, value, self.wide.values[n.name])
        return value


def _compare(cut: Cut, node: fx.Node, ours: Any, theirs: Any) -> None:
    axes = cut.analysis.axes.get(node.name)
    if axes is None:
        return
    several = isinstance(ours, (tuple, list))
    for small, wide, dims in zip(ours if several else [ours], theirs if several else [theirs], axes if several else [axes], strict=False):
        if not isinstance(small, torch.Tensor) or dims is None:
            continue
        if any(axis.root().size >= SYMBOLIC and cut.size(axis) != axis.root().size for axis in dims):
            continue  # units folded into a dynamic extent have no fixed positions; a later node shows them
        for dim, axis in enumerate(dims):
            index = None if axis.root().size >= SYMBOLIC else positions(axis, cut.units)
            wide = wide if index is None else wide.index_select(dim, index.to(wide.device))
        if small.shape != wide.shape:
            raise _Found(_disagreement(cut, node, f"shape {list(small.shape)}, the slice of the masked one is {list(wide.shape)}"))
        if small.is_floating_point() and (found := agreement(small, wide)).max_rel > TOLERANCE.get(small.dtype, 1e-4):
            raise _Found(_disagreement(cut, node, f"relative difference {found.max_rel:.2e}"))


def _disagreement(cut: Cut, node: fx.Node, what: str) -> Disagreement:
    applied = cut.analysis.applied.get(node.name)
    return Disagreement(node.name, str(node.target), str(applied.line) if applied else "", what, source_of(cut.analysis, node.name))

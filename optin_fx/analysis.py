"""Dependency analysis: walk the graph once, let every op's rule equate axes, and read off what is left free.

One pass over the nodes, one line per op; no model names, no module classes. The result is kept on the program and is
what grouping, masking, slicing and cost read.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

from torch import fx
from torch._ops import OpOverload

from optin_fx.applied import Applied as Applied
from optin_fx.applied import Consumer as Consumer
from optin_fx.applied import apply, choosers_in, consumers_in
from optin_fx.attributes import memory_order, overlapping, storage_key
from optin_fx.dims import SYMBOLIC, Axis, Pin, pin
from optin_fx.program import Program
from optin_fx.references import References
from optin_fx.rulebook import Call, find
from optin_fx.sizes import Sizes

T = TypeVar("T")

REGIONS = {
    "cond": "read or made in branches that data choose between (torch.cond)",
    "wrap_with_autocast": "computed under autocast, whose casts are no part of the graph",
    "while_loop": "computed in a loop whose length data choose (torch.while_loop)",
}
"""Higher-order ops that hold a part of the graph, and why what they touch stays."""

NORMALISED, AVERAGED = "normalised", "averaged"
"""Codes of pins that a user may waive, see `Program.allowing`."""


@dataclass
class Analysis:
    """Axes of every tensor in a program's graph, and the ops that relate them.

    Attributes:
        axes: node name to the dims of its result, or a list of them for several results.
        applied: node name to the applied rule, for nodes that have one.
        batch: axes that are the leading dim of a user's input.
        unknown: overloads without a rule, with the names of their nodes.
    """

    program: Program
    axes: dict[str, Any] = field(default_factory=dict)
    applied: dict[str, Applied] = field(default_factory=dict)
    batch: list[Axis] = field(default_factory=list)
    unknown: dict[str, list[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.sizes, self.references = Sizes(self.program), References()
        self._kept: dict[Callable[[Analysis], Any], Any] = {}

    def once(self, make: Callable[[Analysis], T]) -> T:
        """`make(self)`, made on first use and kept: for all that follows from an analysis alone."""
        if make not in self._kept:
            self._kept[make] = make(self)
        return cast(T, self._kept[make])

    # -- the walk ------------------------------------------------------------------------------------------------

    def run(self) -> Analysis:
        """Walk the graph in order. Called once, by `analyse`."""
        self._tie()
        for node in self.program.graph_module.graph.nodes:
            if node.op == "get_attr":
                if str(node.target) in self._stored:
                    self.axes[node.name] = self._stored[str(node.target)]
            elif node.op == "placeholder":
                shape = self.sizes.shape_of(node)
                if isinstance(shape, tuple):
                    axes = self.axes[node.name] = self.sizes.fresh(shape)
                    given = node.name in self.program.state_inputs
                    self._pin_all(axes, Pin("a cache that is passed in" if given else "an input of the model", node.name))
                    if axes:
                        self.batch.append(axes[0])
            elif node.op == "output":
                self._outputs(node)
            elif node.op == "call_function":
                self._call(node)
        self.references.settle()
        self._pin_sums_over_symbols()
        return self

    def _tie(self) -> None:
        """Axes of all stored tensors: tied ones share them, and ones that overlap in any other way keep their extents."""
        tensors = self.program.tensors
        tied: dict[Any, list[Axis]] = {}
        self._stored: dict[str, list[Axis]] = {}
        for name, tensor in tensors.items():
            order = memory_order(tensor)
            known = tied.setdefault(storage_key(tensor), self.sizes.fresh(tensor.shape[d] for d in order))
            axes = self._stored[name] = self.sizes.fresh(tensor.shape)
            for d, axis in zip(order, known, strict=True):
                axes[d] = axis
        names = {id(tensor): name for name, tensor in tensors.items()}
        for cluster in overlapping(tensors.values()):
            if len({storage_key(tensor) for tensor in cluster}) > 1:
                first = names[id(cluster[0])]
                for tensor in cluster:
                    self._pin_all(self._stored[names[id(tensor)]], Pin(f"it shares memory with {first} in another form"))

    def _outputs(self, node: fx.Node) -> None:
        """What is returned keeps its extents, but for caches, which only the next call reads."""
        self.references.refuse(node, "positions along it are an output of the model")
        state = self.program.state_outputs
        for place, value in enumerate(flat_outputs(node)):
            if not isinstance(value, fx.Node):
                continue
            axes = self.axes.get(value.name)
            if place not in state:
                self._pin_all(axes, Pin("an output of the model", value.name))
                continue
            for axis in axes or ():
                if isinstance(axis, Axis) and axis.root().size >= SYMBOLIC:
                    pin(axis, Pin("a dynamic extent of a cache", value.name))

    def _pin_sums_over_symbols(self) -> None:
        """A unit that is summed over in one dim with a symbolic extent has no place in a mask of fixed length."""
        for consumer in self.consumers():
            operand = self.applied[consumer.node].call.operands[consumer.operand]
            if self.axes[operand.node.name][consumer.dim].root().size >= SYMBOLIC:
                for leaf in consumer.leaves:
                    pin(leaf, Pin("summed over in one dim with a dynamic extent", consumer.node))

    def _call(self, node: fx.Node) -> None:
        if node.target is operator.getitem and isinstance(node.args[0], fx.Node):
            source = self.axes.get(node.args[0].name)
            index = node.args[1]
            if isinstance(source, list) and isinstance(index, int) and index < len(source) and isinstance(source[index], list):
                self.axes[node.name] = source[index]
                self.references.pick(node.name, node.args[0].name, index)
            return
        shape = self.sizes.shape_of(node)
        if shape is None and not _reads_values(node):
            return
        rule = find(node.target) if isinstance(node.target, OpOverload) else None
        call = Call(node, self.sizes.shape_of) if rule is not None else None
        line = rule.line(call) if rule is not None and call is not None else None
        if rule is None or call is None or line is None:
            self._unknown(node, shape, known=rule is not None)
            return
        held = self.references.held(call, line)
        self.applied[node.name], results = apply(rule, line, call, self.axes, self.sizes.hint, held)
        self.references.follow(self.applied[node.name])
        self.axes[node.name] = results[0] if isinstance(shape, tuple) else results

    def _unknown(self, node: fx.Node, shape: Any, *, known: bool) -> None:
        """Unknown is never an error and never a guess: everything that the op touches keeps its extent."""
        name = str(node.target)
        reason = REGIONS.get(name) or (f"no rule for this use of {name}" if known else f"no rule for {name}")
        why = Pin(reason, node.name)
        self.unknown.setdefault(name, []).append(node.name)
        self.references.refuse(node, reason)
        for value in node.all_input_nodes:
            self._pin_all(self.axes.get(value.name), why)
        if isinstance(shape, tuple):
            self.axes[node.name] = self.sizes.fresh(shape)
        elif shape is not None:
            self.axes[node.name] = [None if s is None else self.sizes.fresh(s) for s in shape]
        self._pin_all(self.axes.get(node.name), why)

    def _pin_all(self, axes: Any, why: Pin) -> None:
        for axis in axes or ():
            if isinstance(axis, Axis):
                pin(axis, why)
            else:
                self._pin_all(axis, why)

    # -- reading off -----------------------------------------------------------------------------------------------

    def pinned_leaves(self) -> dict[Axis, Pin]:
        """Every leaf that must keep its extent, with the first reason on it or on an axis that it is part of."""
        found = {leaf: [why for why in pins if not self._waived(leaf, why)] for leaf, pins in self.once(_pins).items()}
        return {leaf: pins[0] for leaf, pins in found.items() if pins}

    def allowed_leaves(self) -> dict[Axis, Pin]:
        """Leaves that are free only because the program allows what the pin forbids."""
        pinned, allow = self.pinned_leaves(), self.program.allow
        found = {leaf: [why for why in pins if why.code in allow] for leaf, pins in self.once(_pins).items() if leaf not in pinned}
        return {leaf: pins[0] for leaf, pins in found.items() if pins}

    def _waived(self, leaf: Axis, why: Pin) -> bool:
        """Whether a pin does not hold: the user allows it, or it is a mean over an axis that is no residual stream."""
        return why.code in self.program.allow or (why.code == AVERAGED and "residual" not in leaf.roles)

    def consumers(self) -> list[Consumer]:
        """Every place where a leaf is contracted, in graph order. Zeroing a unit there is what removing it means."""
        return self.once(_consumers)

    def choosers(self) -> list[Consumer]:
        """Every place where leaves are chosen among, as experts by a router, in graph order."""
        return self.once(_choosers)

    def roots(self) -> list[Axis]:
        """The distinct axes of all tensors and factors, in graph order."""
        found: dict[Axis, None] = {}

        def visit(axes: Any) -> None:
            for axis in axes or ():
                if isinstance(axis, Axis):
                    found[axis.root()] = None
                else:
                    visit(axis)

        for name, axes in self.axes.items():
            visit(axes)
            if name in self.applied:
                visit(self.applied[name].factors.values())
        return list(found)


def analyse(program: Program) -> Analysis:
    """The analysis of a program, made on first use and kept with it."""
    found = program.__dict__.get("_analysis")
    if found is None:
        import optin_fx.rules  # noqa: F401  registers the rules

        found = program.__dict__["_analysis"] = Analysis(program).run()
    return found


def flat_outputs(node: fx.Node) -> Sequence[Any]:
    """What an output node returns, in the order of the flat outputs."""
    found = node.args[0]
    return found if isinstance(found, (list, tuple)) else [found]


def _pins(analysis: Analysis) -> dict[Axis, list[Pin]]:
    seen: set[Axis] = set()
    return {leaf: list(leaf.pins) for root in analysis.roots() for leaf in _inherit(root, seen)}


def _consumers(analysis: Analysis) -> list[Consumer]:
    found = (consumer for name, applied in analysis.applied.items() for consumer in consumers_in(name, applied))
    # what is counted of a removed unit is nothing, and counts are no place for a gate
    return [c for c in found if not analysis.references.counts(analysis.applied[c.node].call.operands[c.operand].node.name)]


def _choosers(analysis: Analysis) -> list[Consumer]:
    return [consumer for name, applied in analysis.applied.items() for consumer in choosers_in(name, applied)]


def _inherit(root: Axis, seen: set[Axis]) -> Iterable[Axis]:
    """Pins and roles of an axis hold for all that it is made of: hand them down, and yield pinned leaves."""
    stack = [root]
    while stack:
        axis = stack.pop()
        if not axis.sign:
            if axis.pins:
                yield axis
            continue
        if axis in seen:
            continue
        seen.add(axis)
        for part in axis.parts:
            inner = part.root()
            for why in axis.pins:
                if pin(inner, why):
                    seen.discard(inner)
            if not axis.roles <= inner.roles:
                inner.roles |= axis.roles
                seen.discard(inner)
            stack.append(inner)


_SHAPE_READERS = ("sym_size", "sym_numel", "sym_stride", "_assert", "sym_constrain", "_guards_fn")


def _reads_values(node: fx.Node) -> bool:
    """True for an op without tensor result that reads tensor values (`item`), not only shapes or assertions."""
    name = getattr(node.target, "__name__", str(node.target))
    return isinstance(node.target, OpOverload) and not any(word in name for word in _SHAPE_READERS)

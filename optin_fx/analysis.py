"""Dependency analysis: walk the graph once, let every op's rule equate axes, and read off what is left free.

One pass over the nodes, one line per op; no model names, no module classes. The result is kept on the program and is
what grouping, masking, slicing and cost read.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache
from math import prod
from typing import Any

import sympy
import torch
from torch import fx
from torch._ops import OpOverload
from torch.utils import _pytree as pytree

from optin_fx.attributes import memory_order, overlapping, storage_key
from optin_fx.dims import SYMBOLIC, Axis, Pin, atom, leaves, pin, product, total, unify
from optin_fx.errors import RuleError
from optin_fx.program import Program
from optin_fx.rulebook import ELLIPSIS, Call, Line, Rule, Term, find


@cache
def _prime(index: int) -> int:
    """Distinct primes that stand for symbols. Far above any real extent, so that sums and quotients of symbolic sizes do not
    collide with one another or with fixed extents."""
    return 2**61 - 1 if index == 0 else int(sympy.prevprime(_prime(index - 1)))


@dataclass(slots=True)
class Applied:
    """A rule applied to a call: the line, the axis of every factor, and each operand's dims with `...` written out."""

    call: Call
    rule: Rule
    line: Line
    factors: dict[str, Axis]
    operands: list[tuple[Term, ...] | None]

    def contracted(self) -> set[str]:
        """Names of factors that are summed over: on the left only, in an op that does not merely drop them."""
        if self.line.drop:
            return set()
        right = {name for dims in self.line.results for term in dims for name in term.names()}
        found = set(self.factors) - right
        return {name for name in found if not name.startswith(ELLIPSIS) or not _has_ellipsis(self.line.results)}


@dataclass(frozen=True, slots=True)
class Consumer:
    """A place where units are consumed: an operand's dim that a contraction sums over.

    Attributes:
        node: name of the contracting node.
        operand: which tensor operand of the call, the activation where there is one.
        dim: dim of that operand.
        leaves: the leaves in that dim that are summed over (others may pass, as the groups of a grouped conv do).
    """

    node: str
    operand: int
    dim: int
    leaves: frozenset[Axis]


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
        self._symbols: dict[Any, int] = {}
        self._hints: dict[int, int] = {}
        self._exprs: dict[Any, int] = {}
        self._shapes: dict[str, Any] = {}

    # -- sizes ---------------------------------------------------------------------------------------------------

    def size(self, extent: Any) -> int:
        """The integer that stands for an extent: itself, or a product of primes for a symbolic one."""
        if isinstance(extent, int):
            return extent
        expr = extent.node.expr
        found = self._exprs.get(expr)
        if found is None:
            for symbol in sorted(expr.free_symbols, key=str):
                self._symbols.setdefault(symbol, _prime(len(self._symbols)))
            found = int(expr.xreplace({s: sympy.Integer(self._symbols[s]) for s in expr.free_symbols}))
            self._exprs[expr] = found
            hints = {s: self.symbol_hints[s] for s in expr.free_symbols if s in self.symbol_hints}
            try:
                self._hints[found] = int(expr.xreplace(hints))
            except TypeError:
                self._hints[found] = int(extent.node.hint) if extent.node.has_hint() else 1
        return found

    def hint(self, size: int) -> int:
        """The extent in the example inputs of a size."""
        return size if size < SYMBOLIC else self._hints.get(size, 1)

    @property
    def symbol_hints(self) -> Mapping[Any, int]:
        """Extents of the graph's symbols in the program's example inputs."""
        if not hasattr(self, "_symbol_hints"):
            self._symbol_hints: dict[Any, int] = {}
            leaves_ = pytree.tree_leaves((self.program.args, self.program.kwargs))
            example = [leaf for leaf in leaves_ if isinstance(leaf, torch.Tensor)]
            nodes = [n for n in self.program.graph_module.graph.nodes if n.op == "placeholder"]
            tensors = [n.meta["val"] for n in nodes if isinstance(n.meta.get("val"), torch.Tensor)]
            if len(example) == len(tensors):
                for value, fake in zip(example, tensors, strict=True):
                    for extent, symbolic in zip(value.shape, fake.shape, strict=False):
                        if not isinstance(symbolic, int) and symbolic.node.expr.is_symbol:
                            self._symbol_hints.setdefault(symbolic.node.expr, sympy.Integer(extent))
        return self._symbol_hints

    def shape_of(self, node: fx.Node) -> Any:
        """Integer sizes of a node's tensor; a list of them for several results; None where there is no tensor."""
        if node.name in self._shapes:
            return self._shapes[node.name]
        if node.op == "get_attr":
            value: Any = self.program.tensors.get(str(node.target))
        else:
            value = node.meta.get("val")
        if isinstance(value, torch.Tensor):
            shape: Any = tuple(self.size(d) for d in value.shape)
        elif isinstance(value, (list, tuple)):
            shape = [tuple(self.size(d) for d in v.shape) if isinstance(v, torch.Tensor) else None for v in value]
        else:
            shape = None
        self._shapes[node.name] = shape
        return shape

    def fresh(self, shape: Iterable[int]) -> list[Axis]:
        """New axes of which only the sizes are known."""
        return [atom(size, self.hint(size)) for size in shape]

    # -- the walk ------------------------------------------------------------------------------------------------

    def run(self) -> Analysis:
        """Walk the graph in order. Called once, by `analyse`."""
        self._tie()
        for node in self.program.graph_module.graph.nodes:
            if node.op == "get_attr":
                if str(node.target) in self._stored:
                    self.axes[node.name] = self._stored[str(node.target)]
            elif node.op == "placeholder":
                shape = self.shape_of(node)
                if isinstance(shape, tuple):
                    axes = self.axes[node.name] = self.fresh(shape)
                    given = node.name in self.program.state_inputs
                    self._pin_all(axes, Pin("a cache that is passed in" if given else "an input of the model", node.name))
                    if axes:
                        self.batch.append(axes[0])
            elif node.op == "output":
                self._outputs(node)
            elif node.op == "call_function":
                self._call(node)
        self._pin_sums_over_symbols()
        return self

    def _tie(self) -> None:
        """Axes of all stored tensors: tied ones share them, and ones that overlap in any other way keep their extents."""
        tensors = self.program.tensors
        tied: dict[Any, list[Axis]] = {}
        self._stored: dict[str, list[Axis]] = {}
        for name, tensor in tensors.items():
            order = memory_order(tensor)
            known = tied.setdefault(storage_key(tensor), self.fresh(tensor.shape[d] for d in order))
            axes = self._stored[name] = self.fresh(tensor.shape)
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
            return
        shape = self.shape_of(node)
        if shape is None and not _reads_values(node):
            return
        rule = find(node.target) if isinstance(node.target, OpOverload) else None
        call = Call(node, self.shape_of) if rule is not None else None
        line = rule.line(call) if rule is not None and call is not None else None
        if rule is None or call is None or line is None:
            self._unknown(node, shape, known=rule is not None)
            return
        results = self.apply(rule, line, call)
        self.axes[node.name] = results[0] if isinstance(shape, tuple) else results

    def _unknown(self, node: fx.Node, shape: Any, *, known: bool) -> None:
        """Unknown is never an error and never a guess: everything that the op touches keeps its extent."""
        name = str(node.target)
        why = Pin(f"no rule for this use of {name}" if known else f"no rule for {name}", node.name)
        self.unknown.setdefault(name, []).append(node.name)
        for value in node.all_input_nodes:
            self._pin_all(self.axes.get(value.name), why)
        if isinstance(shape, tuple):
            self.axes[node.name] = self.fresh(shape)
        elif shape is not None:
            self.axes[node.name] = [None if s is None else self.fresh(s) for s in shape]
        self._pin_all(self.axes.get(node.name), why)

    def _pin_all(self, axes: Any, why: Pin) -> None:
        for axis in axes or ():
            if isinstance(axis, Axis):
                pin(axis, why)
            else:
                self._pin_all(axis, why)

    def apply(self, rule: Rule, line: Line, call: Call) -> list[list[Axis]]:
        """Equate the axes of a call's operands as its line says, and return those of its results."""
        node = call.node
        if len(line.operands) < len(call.operands) or len(line.results) < len(call.results):
            raise _contradiction(
                call,
                line,
                f"has {len(line.operands)} operands and {len(line.results)} results, "
                f"the call has {len(call.operands)} and {len(call.results)}",
            )
        why = Pin("axes that do not match", node.name)
        operands = [_written_out(dims, len(o.shape)) for dims, o in zip(line.operands, call.operands, strict=False)]
        results = [_written_out(dims, len(s)) or () for dims, s in zip(line.results, call.results, strict=False)]
        factors: dict[str, Axis] = {}
        sizes = dict(line.sizes)
        for k, (dims, shape) in enumerate(zip(results, call.results, strict=True)):
            if len(dims) != len(shape):
                raise _contradiction(call, line, f"gives result {k} {len(dims)} dims, it has {len(shape)}")
            for term, size in zip(dims, shape, strict=True):
                if not term.sign:
                    sizes.setdefault(term.name, size)
        compounds: list[tuple[Term, Axis]] = []
        for terms, operand in zip(operands, call.operands, strict=True):
            if terms is None:
                continue
            axes = self.axes[operand.node.name]
            if len(terms) != len(axes):
                raise _contradiction(call, line, f"gives operand '{operand.name}' {len(terms)} dims, it has {len(axes)}")
            for term, axis in zip(terms, axes, strict=True):
                if term.sign == "":
                    known = factors.get(term.name)
                    if known is None or (known.size == 1 and axis.size != 1):
                        factors[term.name] = axis
                    elif axis.size != 1:
                        unify(known, axis, why)
                elif term.sign == "1":
                    if axis.size != 1:
                        pin(axis, Pin("its extent is written in the code", node.name))
                else:
                    compounds.append((term, axis))
        for term, axis in compounds:
            self._infer(term, axis.size, factors, sizes)
            unify(self._build(term, factors, sizes, why), axis, why)
        found = []
        for k, (dims, shape) in enumerate(zip(results, call.results, strict=True)):
            axes = []
            for term, size in zip(dims, shape, strict=True):
                if term.sign in ("*", "+"):
                    self._infer(term, size, factors, sizes)
                elif not term.sign and term.name not in factors:
                    factors[term.name] = atom(size, self.hint(size))
                axis = self._build(term, factors, sizes, why)
                if axis.size != size:
                    raise _contradiction(call, line, f"makes dim {len(axes)} of result {k} {axis.size} long, it is {size}")
                axes.append(axis)
            found.append(axes)
        for name in line.pinned:
            if name in factors:
                pin(factors[name], Pin(line.why, node.name, code=line.code))
        for name, role in line.roles.items():
            if name == ELLIPSIS:
                for factor, axis in factors.items():
                    if factor.startswith(ELLIPSIS):
                        axis.root().roles.add(role)
            elif name in factors:
                factors[name].root().roles.add(role)
        self.applied[node.name] = Applied(call, rule, line, factors, operands)
        return found

    def _infer(self, term: Term, size: int, factors: Mapping[str, Axis], sizes: dict[str, int]) -> None:
        """The one unknown extent in a product or sum follows from its whole."""
        unknown = []
        known: list[int] = []
        for part in term.parts:
            extent = self._extent(part, factors, sizes)
            if extent is None:
                unknown.append(part)
            else:
                known.append(extent)
        if len(unknown) != 1:
            return
        rest = size // prod(known) if term.sign == "*" else size - sum(known)
        if not unknown[0].sign:
            sizes[unknown[0].name] = rest
        elif unknown[0].sign in ("*", "+"):
            self._infer(unknown[0], rest, factors, sizes)

    def _extent(self, term: Term, factors: Mapping[str, Axis], sizes: Mapping[str, int]) -> int | None:
        if term.sign == "":
            return factors[term.name].root().size if term.name in factors else sizes.get(term.name)
        if term.sign == "1":
            return int(term.name)
        parts = [self._extent(part, factors, sizes) for part in term.parts]
        known = [p for p in parts if p is not None]
        if len(known) != len(parts):
            return None
        return prod(known) if term.sign == "*" else sum(known)

    def _build(self, term: Term, factors: dict[str, Axis], sizes: Mapping[str, int], why: Pin) -> Axis:
        if term.sign == "":
            if term.name not in factors:
                if term.name not in sizes:
                    raise RuleError(f"the extent of {term.name!r} follows from nothing", at=f"%{why.node}", fix="give it in sizes=")
                factors[term.name] = atom(sizes[term.name], self.hint(sizes[term.name]))
            return factors[term.name]
        if term.sign == "1":
            axis = atom(int(term.name))
            pin(axis, Pin("its extent is written in the code", why.node))
            return axis
        parts = [self._build(part, factors, sizes, why) for part in term.parts]
        return product(parts) if term.sign == "*" else total(parts)

    # -- reading off -----------------------------------------------------------------------------------------------

    def pinned_leaves(self) -> dict[Axis, Pin]:
        """Every leaf that must keep its extent, with the first reason found on it or on an axis that it is part of."""
        reasons: dict[Axis, Pin] = {}
        seen: set[Axis] = set()
        for root in self.roots():
            for leaf, why in _inherit(root, seen):
                reasons.setdefault(leaf, why)
        return reasons

    def consumers(self) -> list[Consumer]:
        """Every place where a leaf is contracted, in graph order. Zeroing a unit there is what removing it means."""
        if not hasattr(self, "_consumers"):
            self._consumers = [c for name, applied in self.applied.items() for c in _consumers(name, applied)]
        return self._consumers

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


def _contradiction(call: Call, line: Line, what: str) -> RuleError:
    return RuleError(f"the rule of {call.op} {what}", at=f"%{call.node.name}", fix=f"correct the line: {line}")


def _inherit(root: Axis, seen: set[Axis]) -> Iterable[tuple[Axis, Pin]]:
    """Pins and roles of an axis hold for all that it is made of: hand them down, and yield pinned leaves."""
    stack = [root]
    while stack:
        axis = stack.pop()
        if not axis.sign:
            if axis.pins:
                yield axis, axis.pins[0]
            continue
        if axis in seen:
            continue
        seen.add(axis)
        for part in axis.parts:
            inner = part.root()
            if axis.pins and not inner.pins:
                inner.pins.append(axis.pins[0])
                seen.discard(inner)
            if not axis.roles <= inner.roles:
                inner.roles |= axis.roles
                seen.discard(inner)
            stack.append(inner)


@lru_cache(maxsize=4096)
def _written_out(dims: tuple[Term, ...] | None, rank: int) -> tuple[Term, ...] | None:
    """Replace `...` by as many factors as the rank leaves room for, named from the right so that they broadcast."""
    if dims is None or not any(term.sign == ELLIPSIS for term in dims):
        return dims
    at = next(i for i, term in enumerate(dims) if term.sign == ELLIPSIS)
    count = rank - len(dims) + 1
    if count < 0:
        return dims
    middle = tuple(Term("", f"{ELLIPSIS}{i}") for i in reversed(range(count)))
    return dims[:at] + middle + dims[at + 1 :]


def _has_ellipsis(sides: Sequence[tuple[Term, ...]]) -> bool:
    return any(term.sign == ELLIPSIS for dims in sides for term in dims)


_SHAPE_READERS = ("sym_size", "sym_numel", "sym_stride", "_assert", "sym_constrain", "_guards_fn")


def _reads_values(node: fx.Node) -> bool:
    """True for an op without tensor result that reads tensor values (`item`), not only shapes or assertions."""
    name = getattr(node.target, "__name__", str(node.target))
    return isinstance(node.target, OpOverload) and not any(word in name for word in _SHAPE_READERS)


def _consumers(name: str, applied: Applied) -> Iterable[Consumer]:
    contracted = applied.contracted()
    places: dict[tuple[int, int], set[Axis]] = {}
    for factor in sorted(contracted):
        below = {leaf for leaf in leaves(applied.factors[factor]) if leaf.size > 1}
        if not below:
            continue
        holders = [
            (k, j)
            for k, dims in enumerate(applied.operands)
            for j, term in enumerate(dims or ())
            if factor in term.names() and applied.call.operands[k].shape[j] > 1
        ]
        if holders:
            # any operand would do; zeroing the activation leaves the weights readable and serves shared weights too
            computed = [h for h in holders if applied.call.operands[h[0]].node.op != "get_attr"]
            places.setdefault((computed or holders)[0], set()).update(below)
    for (operand, dim), found in sorted(places.items()):
        yield Consumer(name, operand, dim, frozenset(found))

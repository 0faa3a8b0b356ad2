"""Rules: what an op does to axes, as data.

A rule is one line per ATen overload in einops-like notation, read by grouping, masking, slicing and cost alike:

    linear               "... i, o i, o -> ... o"
    scaled_dot_product   "... q d, ... k! d, ... k! e, ... q k! -> ... q e"
    a view               "b t (h d) -> b t h d"
    a concatenation      "b x, b y -> b (x + y)"

* A name is a **factor**; the same name is the same axis. `(h d)` is a product, `(x + y)` a concatenation.
* `...` are leading (or any) dims in common, aligned from the right and broadcast.
* A number is a fixed extent with no axis to prune (`1` also stands for a broadcast dim).
* `k!` pins the factor: its entries see each other (softmax, a normalisation), or its positions have a meaning.
* `_` is an operand of which only the type is read.
* A factor that is on the left only is **contracted** (summed over), or merely dropped if the rule says so.

What a line promises, and the tests check by running the op: for a free factor `slice . op == op . slice`, for a contracted one
`op . slice == op . mask`. So slicing units away everywhere equals zeroing them where they are contracted.

An op whose mapping depends on its arguments computes its line from the `Call`. An op without a rule pins its axes.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from math import prod
from typing import Any

import torch
from torch import fx
from torch._ops import OpOverload, OpOverloadPacket

from optin_fx.errors import RuleError

ELLIPSIS = "..."

POSITIONS, COUNTS = "positions", "counts"
"""What the values of a tensor may say of an axis: where along it, or how many for each of its units. See `optin_fx.references`."""

TIMES = "*"
"""Key of a resize function's answer: multiply the result by this number."""


@dataclass(frozen=True, slots=True)
class Term:
    """One dim of a line: a factor, a number, a product or a sum of terms, or the ellipsis."""

    sign: str  # "" factor, "1" number, "*" product, "+" sum, "..." ellipsis
    name: str = ""
    parts: tuple[Term, ...] = ()

    def names(self) -> tuple[str, ...]:
        """All factor names in this term, in order."""
        return (self.name,) if self.sign == "" else tuple(n for part in self.parts for n in part.names())

    def __str__(self) -> str:
        if self.sign in ("*", "+"):
            return "(" + (" " if self.sign == "*" else " + ").join(map(str, self.parts)) + ")"
        return self.name or self.sign


@dataclass(frozen=True)
class Line:
    """A parsed rule line with what the notation does not say.

    Attributes:
        operands: per tensor operand its dims; `None` for an operand of which only the type is read (`_`).
        results: per tensor result its dims.
        pinned: factor names written with `!`.
        sizes: extents of factors that no dim shows alone.
        why: reason given for factors with `!`.
        macs: products of factors whose sum is the op's multiply-accumulates, e.g. `("b h q k d", "b h q k e")`.
        drop: left-only factors are dropped (a slice), not summed.
        roles: factor name to the kind of unit that it makes (`head`, `filter`, ...).
        summed: factors that pass and are summed over as well (the statistics of a norm), so that removed units are zeroed on the way in.
        code: of the pins that `!` makes: "" for semantics, or what a user may waive (`dims.Pin`).
        chosen: factors whose removed units are taken out of a choice: `-inf` in the first operand, as before a softmax.
        least: fewest units of a factor that the call can do with.
        tells: number of a result to what its values say about a factor, see `optin_fx.references`.
        frozen: factors that statistics of weights are taken over; where they shrink, the dense statistics stay (`optin_fx.frozen`).
        told: number of an operand to what its values must say about a factor. If they do, the factor is not pinned for it.
    """

    operands: tuple[tuple[Term, ...] | None, ...]
    results: tuple[tuple[Term, ...], ...]
    pinned: frozenset[str] = frozenset()
    sizes: Mapping[str, int] = field(default_factory=dict)
    why: str = "its entries see each other"
    macs: tuple[tuple[str, ...], ...] = ()
    drop: bool = False
    roles: Mapping[str, str] = field(default_factory=dict)
    code: str = ""
    summed: frozenset[str] = frozenset()
    chosen: frozenset[str] = frozenset()
    least: Mapping[str, int] = field(default_factory=dict)
    tells: Mapping[int, tuple[str, str]] = field(default_factory=dict)
    told: Mapping[int, tuple[str, str]] = field(default_factory=dict)
    frozen: frozenset[str] = frozenset()

    def __str__(self) -> str:
        sides = (", ".join("_" if dims is None else " ".join(map(str, dims)) for dims in side) for side in (self.operands, self.results))
        return " -> ".join(sides)


def line(
    text: str,
    *,
    sizes: Mapping[str, int] | None = None,
    why: str = "its entries see each other",
    macs: str | Sequence[str] = (),
    drop: bool = False,
    roles: Mapping[str, str] | None = None,
    code: str = "",
    summed: Iterable[str] = (),
    chosen: Iterable[str] = (),
    least: Mapping[str, int] | None = None,
    tells: Mapping[int, tuple[str, str]] | None = None,
    told: Mapping[int, tuple[str, str]] | None = None,
    frozen: Iterable[str] = (),
) -> Line:
    """Parse a rule line. See the module's text for the notation and `Line` for the options.

    Raises:
        RuleError: the text is not well formed.
    """
    operands, results, pinned = _parse(text)
    terms = (macs,) if isinstance(macs, str) else macs
    products = tuple(tuple(t.split()) for t in terms)
    return Line(
        operands, results, pinned, sizes or {}, why, products, drop, roles or {}, code, frozenset(summed),
        frozenset(chosen), least or {}, tells or {}, told or {}, frozen=frozenset(frozen),
    )  # fmt: skip


@lru_cache(maxsize=4096)
def _parse(text: str) -> tuple[tuple[tuple[Term, ...] | None, ...], tuple[tuple[Term, ...], ...], frozenset[str]]:
    left, arrow, right = text.partition("->")
    if not arrow:
        raise RuleError(f"no '->' in the rule line {text!r}", fix="write operands -> results, as in 'i, o i -> o'")
    pinned: set[str] = set()

    def dims(side: str) -> tuple[Term, ...] | None:
        if side.strip() == "_":
            return None
        tokens = side.replace("(", " ( ").replace(")", " ) ").replace("+", " + ").split()
        found, rest = terms(tokens, 0)
        if rest != len(tokens):
            raise RuleError(f"unbalanced ')' in the rule line {text!r}", fix="close every parenthesis that is opened")
        return found

    def terms(tokens: list[str], at: int) -> tuple[tuple[Term, ...], int]:
        found: list[Term] = []
        while at < len(tokens) and tokens[at] not in (")", "+"):
            token = tokens[at]
            if token == "(":
                parts, signs = [], 0
                at += 1
                while True:
                    some, at = terms(tokens, at)
                    parts.append(some)
                    if at >= len(tokens):
                        raise RuleError(f"unbalanced '(' in the rule line {text!r}", fix="close every parenthesis that is opened")
                    at += 1
                    if tokens[at - 1] == ")":
                        break
                    signs += 1
                products = [some[0] if len(some) == 1 else Term("*", parts=some) for some in parts]
                found.append(Term("+", parts=tuple(products)) if signs else products[0])
                continue
            at += 1
            if token == ELLIPSIS:
                found.append(Term(ELLIPSIS))
            elif token.isdigit():
                found.append(Term("1", token))
            else:
                name = token.rstrip("!")
                if not name.replace("_", "").isalnum():
                    raise RuleError(f"bad factor name {token!r} in the rule line {text!r}", fix="use letters, digits and _")
                if token.endswith("!"):
                    pinned.add(name)
                found.append(Term("", name))
        return tuple(found), at

    operands = tuple(dims(side) for side in left.split(",")) if left.strip() else ()
    results = tuple(dims(side) or () for side in right.split(","))
    return operands, results, frozenset(pinned)


# -- calls -------------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Operand:
    """One tensor argument of a call: its argument name, its place in a tensor list, the node that makes it, its sizes."""

    name: str
    index: int | None
    node: fx.Node
    shape: tuple[int, ...]


class Call:
    """A node seen as a call of an ATen overload: arguments by name, tensor operands and results with integer sizes."""

    __slots__ = ("arguments", "node", "op", "operands", "results")

    def __init__(self, node: fx.Node, shape_of: Callable[[fx.Node], Any]) -> None:
        assert isinstance(node.target, OpOverload)
        self.node, self.op = node, node.target
        schema = self.op._schema
        self.arguments: dict[str, Any] = {}
        self.operands: list[Operand] = []
        for i, argument in enumerate(schema.arguments):
            if i < len(node.args) and not argument.kwarg_only:
                value = node.args[i]
            else:
                value = node.kwargs.get(argument.name, argument.default_value)
            self.arguments[argument.name] = value
            if isinstance(value, fx.Node):
                shape = shape_of(value)
                if isinstance(shape, tuple):
                    self.operands.append(Operand(argument.name, None, value, shape))
            elif isinstance(value, (list, tuple)):
                for j, item in enumerate(value):
                    if isinstance(item, fx.Node):
                        shape = shape_of(item)
                        if isinstance(shape, tuple):
                            self.operands.append(Operand(argument.name, j, item, shape))
        found = shape_of(node)
        self.results: list[tuple[int, ...]] = [found] if isinstance(found, tuple) else list(found or ())

    def __getitem__(self, name: str) -> Any:
        """An argument by its schema name, with the schema's default where it is not given."""
        return self.arguments[name]

    def dim(self, value: int, rank: int | None = None) -> int:
        """A dim counted from the front."""
        rank = len(self.operands[0].shape) if rank is None else rank
        return value + rank if value < 0 else value

    def dims(self, value: Any, rank: int | None = None) -> tuple[int, ...]:
        """Dims counted from the front; `None` and `[]` mean all."""
        rank = len(self.operands[0].shape) if rank is None else rank
        if value is None or (isinstance(value, (list, tuple)) and not value):
            return tuple(range(rank))
        return tuple(self.dim(v, rank) for v in ([value] if isinstance(value, int) else value))


# -- registry ----------------------------------------------------------------------------------------------------------

Mapping_ = str | Line | Callable[[Call], "str | Line | None"]


@dataclass(frozen=True)
class Resized:
    """New extents around a call after slicing, for re-deriving its literal sizes.

    `operands` and `results` hold the new sizes; a dim is changed where it differs from the call's own shape.
    `factors` holds the new extent of every factor of the call's line.
    """

    operands: tuple[tuple[int, ...], ...]
    results: tuple[tuple[int, ...], ...]
    factors: Mapping[str, int]


Resize = Callable[[Call, Resized], Mapping[str, Any] | None]


@dataclass(frozen=True)
class Rule:
    """The line of an op (or the function that computes it) and how its literal sizes follow the axes.

    Attributes:
        op: the ATen (or custom) overload.
        mapping: a line, or a function of the call; `None` as its answer pins the call's axes.
        resize: returns the arguments to change, by schema name; the key "op" changes the overload itself.
    """

    op: OpOverload
    mapping: Mapping_
    resize: Resize | None = None

    def line(self, call: Call) -> Line | None:
        """The rule's line for this call."""
        found = self.mapping(call) if callable(self.mapping) else self.mapping
        return line(found) if isinstance(found, str) else found


_RULES: dict[OpOverload, Rule] = {}
_NAMED: dict[str, tuple[Mapping_, Resize | None]] = {}


def rule(*ops: OpOverload, mapping: str | Line | None = None, resize: Resize | None = None) -> Callable[[Any], Any]:
    """Register a rule for one or more overloads: as a decorator of a function `Call -> line`, or with `mapping`.

    >>> @rule(torch.ops.mylib.scale.default)
    ... def scale(call):
    ...     return "... c, c -> ... c"

    Raises:
        RuleError: an overload has a rule already, or a packet is passed in place of an overload.
    """

    def register(function: Any) -> Any:
        for op in ops:
            if isinstance(op, OpOverloadPacket) or not isinstance(op, OpOverload):
                known = [f"{op}.{name}" for name in op.overloads()] if isinstance(op, OpOverloadPacket) else []
                overloads = ", ".join(known or ["torch.ops.lib.op.overload"])
                raise RuleError(f"{op} is not an overload", so="a rule would be ambiguous", fix=f"register one of: {overloads}")
            if op in _RULES:
                raise RuleError(
                    f"{op} has a rule already: {_RULES[op].mapping}", fix="optin_fx.rulebook.forget(op) first, if you mean to replace it"
                )
            _RULES[op] = Rule(op, function, resize)
        return function

    return register(mapping) if mapping is not None else register


def rules(table: Mapping[OpOverload, str | Line], resize: Resize | None = None) -> None:
    """Register many fixed lines."""
    for op, text in table.items():
        rule(op, mapping=text, resize=resize)


def forget(op: OpOverload) -> None:
    """Remove the rule of an overload."""
    _RULES.pop(op, None)


def named(name: str, mapping: Mapping_, resize: Resize | None = None) -> None:
    """Register a rule for an overload of a library that may never be imported, by its name: `lib.op.overload`."""
    _NAMED[name] = (mapping, resize)


def find(op: Any) -> Rule | None:
    """The rule of an overload. Ops that PyTorch tags as pointwise have one without being listed."""
    found = _RULES.get(op)
    if found is None and isinstance(op, OpOverload) and str(op) in _NAMED:
        found = _RULES[op] = Rule(op, *_NAMED[str(op)])
    if found is None and isinstance(op, OpOverload) and torch.Tag.pointwise in op.tags:
        found = _RULES[op] = Rule(op, pointwise)
    return found


def registered() -> dict[str, Rule]:
    """All rules by the name of their overload, sorted."""
    return {str(op): _RULES[op] for op in sorted(_RULES, key=str)}


def pointwise(call: Call) -> Line:
    """Every operand broadcasts against the others, entry by entry."""
    roles = {}
    if _adds_activations(call):
        roles = {ELLIPSIS: "residual"}
    return line(", ".join([ELLIPSIS] * len(call.operands)) + " -> " + ", ".join([ELLIPSIS] * len(call.results)), roles=roles)


def is_constant(call: Call) -> bool:
    """Whether all that a call reads is made from stored tensors alone."""
    pending, seen = [operand.node for operand in call.operands], set()
    while pending:
        node = pending.pop()
        if node in seen or node.op == "get_attr":
            continue
        if node.op != "call_function":
            return False
        seen.add(node)
        pending += node.all_input_nodes
    return True


def is_left(node: fx.Node, number: int) -> bool:
    """Whether a node's results are read, but not this one."""
    return bool(node.users) and all(user.target is operator.getitem and user.args[1] != number for user in node.users)


def _adds_activations(call: Call) -> bool:
    """True for a sum of two computed tensors, the mark of a residual stream.

    A sum inside an activation function that is written out (`x + 0.044715 * x**3` in a tanh GELU) is none: there one addend is an
    entry-by-entry function of the other.
    """
    if call.op.overloadpacket not in (torch.ops.aten.add, torch.ops.aten.add_) or len(call.operands) != 2:
        return False
    if not all(o.node.op == "call_function" and o.shape == call.results[0] for o in call.operands):
        return False
    one, other = (operand.node for operand in call.operands)
    return one not in _pointwise_sources(other) and other not in _pointwise_sources(one)


def _pointwise_sources(node: fx.Node) -> set[fx.Node]:
    """What a value is an entry-by-entry function of, within the few ops of an activation function."""
    found: set[fx.Node] = set()
    front = [node]
    for _ in range(4):
        behind = [n for n in front if isinstance(n.target, OpOverload) and torch.Tag.pointwise in n.target.tags]
        front = [source for n in behind for source in n.all_input_nodes]
        found.update(front)
    return found


def shape_of_term(term: Term, extents: Mapping[str, int]) -> int:
    """The extent of a dim from the extents of its factors."""
    if term.sign == "":
        return extents[term.name]
    if term.sign == "1":
        return int(term.name)
    parts = [shape_of_term(part, extents) for part in term.parts]
    return prod(parts) if term.sign == "*" else sum(parts)

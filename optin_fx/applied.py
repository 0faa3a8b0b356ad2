"""A rule applied to one call: its line equates the axes of the call's operands, and gives those of its results."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import Any

import torch

from optin_fx.dims import Axis, Pin, atom, leaves, pin, product, total, unify
from optin_fx.errors import RuleError
from optin_fx.rulebook import ELLIPSIS, Call, Line, Rule, Term


@dataclass(slots=True)
class Applied:
    """A rule applied to a call: the line, the axis of every factor, and each operand's dims with `...` written out."""

    call: Call
    rule: Rule
    line: Line
    factors: dict[str, Axis]
    operands: list[tuple[Term, ...] | None]

    @property
    def is_weighted(self) -> bool:
        """Whether a stored weight of two dims or more is among the operands."""
        return any(operand.node.op == "get_attr" and len(operand.shape) >= 2 for operand in self.call.operands)

    def contracted(self) -> set[str]:
        """Names of factors that are summed over: on the left only, in an op that does not merely drop them, or as the line says."""
        if self.line.drop:
            return set(self.line.summed)
        right = {name for dims in self.line.results for term in dims for name in term.names()}
        found = set(self.factors) - right
        return set(self.line.summed) | {name for name in found if not name.startswith(ELLIPSIS) or not _has_ellipsis(self.line.results)}


@dataclass(frozen=True, slots=True)
class Consumer:
    """A place where units are consumed: an operand's dim that a contraction sums over.

    Attributes:
        node: name of the contracting node.
        operand: which tensor operand of the call, the activation where there is one.
        dim: dim of that operand.
        leaves: the leaves in that dim that are summed over (others may pass, as the groups of a grouped conv do).
        choice: the units are chosen among, not summed over: removed ones become -inf, and a gate adds its logarithm.
        worth: what chosen units are worth is looked up here, not summed: removed ones are never looked up, and a gate multiplies.
    """

    node: str
    operand: int
    dim: int
    leaves: frozenset[Axis]
    choice: bool = False
    worth: bool = False

    def gated(self, value: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
        """The operand with a gate that broadcasts to it: zero takes units out, one leaves them as they are."""
        return value + gate.log() if self.choice else value * gate


def apply(
    rule: Rule,
    line: Line,
    call: Call,
    axes_of: Mapping[str, Any],
    hint: Callable[[int], int],
    held: frozenset[str] = frozenset(),
) -> tuple[Applied, list[list[Axis]]]:
    """Equate the axes of a call's operands as its line says, and return those of its results; factors in `held` are not pinned."""
    node = call.node
    if len(line.operands) < len(call.operands) or len(line.results) < len(call.results):
        raise _contradiction(
            call,
            line,
            f"has {len(line.operands)} operands and {len(line.results)} results, the call has {len(call.operands)} and {len(call.results)}",
        )
    why = Pin("axes that do not match", node.name)
    operands = [written_out(dims, len(o.shape)) for dims, o in zip(line.operands, call.operands, strict=False)]
    results = [written_out(dims, len(s)) or () for dims, s in zip(line.results, call.results, strict=False)]
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
        axes = axes_of[operand.node.name]
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
        _infer(term, axis.size, factors, sizes)
        unify(_build(term, factors, sizes, why, hint), axis, why)
    found = []
    for k, (dims, shape) in enumerate(zip(results, call.results, strict=True)):
        axes = []
        for term, size in zip(dims, shape, strict=True):
            if term.sign in ("*", "+"):
                _infer(term, size, factors, sizes)
            elif not term.sign and term.name not in factors:
                factors[term.name] = atom(size, hint(size))
            axis = _build(term, factors, sizes, why, hint)
            if axis.size != size:
                raise _contradiction(call, line, f"makes dim {len(axes)} of result {k} {axis.size} long, it is {size}")
            axes.append(axis)
        found.append(axes)
    for name in line.pinned - held:
        if name in factors:
            pin(factors[name], Pin(line.why, node.name, code=line.code))
    for name, role in line.roles.items():
        if name == ELLIPSIS:
            for factor, axis in factors.items():
                if factor.startswith(ELLIPSIS):
                    axis.root().roles.add(role)
        elif name in factors:
            factors[name].root().roles.add(role)
    return Applied(call, rule, line, factors, operands), found


def _infer(term: Term, size: int, factors: Mapping[str, Axis], sizes: dict[str, int]) -> None:
    """The one unknown extent in a product or sum follows from its whole."""
    unknown = []
    known: list[int] = []
    for part in term.parts:
        extent = _extent(part, factors, sizes)
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
        _infer(unknown[0], rest, factors, sizes)


def _extent(term: Term, factors: Mapping[str, Axis], sizes: Mapping[str, int]) -> int | None:
    if term.sign == "":
        return factors[term.name].root().size if term.name in factors else sizes.get(term.name)
    if term.sign == "1":
        return int(term.name)
    parts = [_extent(part, factors, sizes) for part in term.parts]
    known = [p for p in parts if p is not None]
    if len(known) != len(parts):
        return None
    return prod(known) if term.sign == "*" else sum(known)


def _build(term: Term, factors: dict[str, Axis], sizes: Mapping[str, int], why: Pin, hint: Callable[[int], int]) -> Axis:
    if term.sign == "":
        if term.name not in factors:
            if term.name not in sizes:
                raise RuleError(f"the extent of {term.name!r} follows from nothing", at=f"%{why.node}", fix="give it in sizes=")
            factors[term.name] = atom(sizes[term.name], hint(sizes[term.name]))
        return factors[term.name]
    if term.sign == "1":
        axis = atom(int(term.name))
        pin(axis, Pin("its extent is written in the code", why.node))
        return axis
    parts = [_build(part, factors, sizes, why, hint) for part in term.parts]
    return product(parts) if term.sign == "*" else total(parts)


def consumers_in(name: str, applied: Applied) -> Iterable[Consumer]:
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


def choosers_in(name: str, applied: Applied) -> Iterable[Consumer]:
    """Places where units are chosen among."""
    for dim, term in enumerate(applied.operands[0] or ()) if applied.line.chosen else ():
        below = {leaf for factor in term.names() if factor in applied.line.chosen for leaf in leaves(applied.factors[factor])}
        found = frozenset(leaf for leaf in below if leaf.size > 1)
        if found:
            yield Consumer(name, 0, dim, found, choice=True)


def _contradiction(call: Call, line: Line, what: str) -> RuleError:
    return RuleError(f"the rule of {call.op} {what}", at=f"%{call.node.name}", fix=f"correct the line: {line}")


@lru_cache(maxsize=4096)
def written_out(dims: tuple[Term, ...] | None, rank: int) -> tuple[Term, ...] | None:
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

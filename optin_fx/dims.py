"""The algebra of axes: what a dim of a tensor is made of, and what two equal dims say about each other.

An `Axis` is an **atom** (only a size), a **product** of axes (row-major, outermost first) or a **sum** of axes
(concatenation). `768` meeting `(12 64)` becomes `(h d)`; a concatenation is `(a + b)`; a head of rotary pairs is
`(h (p + p))`. Axes live in a union-find: an atom may be *bound* to a product or sum later, and that refines it
everywhere at once. What is left unbound in the end are the leaves, the units that pruning may remove.

Unifying is type inference (Hindley-Milner's with arithmetic): two dims that must be equal are refined to their
common refinement. Where there is none, both sides are pinned with the reason and the work goes on.

Sizes are plain integers. Symbolic extents (a dynamic batch) enter as large primes, so that equality, divisibility and
products of symbolic sizes are decided exactly by integer arithmetic; `hint` is the extent in the example inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import prod
from typing import TypeVar

import torch

T = TypeVar("T")

SYMBOLIC = 1 << 40
"""Sizes from here on stand for symbolic extents."""


@dataclass(frozen=True, slots=True)
class Pin:
    """Why an axis must keep its extent: a reason in words, the node that demands it, and the user's source line."""

    reason: str
    node: str = ""
    source: str = ""
    code: str = ""
    """`normalised` (removal changes statistics), `averaged` (see `rules.reduction`): a user may waive it; empty: it holds."""

    def __str__(self) -> str:
        place = f" at %{self.node}" if self.node else ""
        return f"{self.reason}{place}{f', {self.source}' if self.source else ''}"


class Axis:
    """One axis of the union-find. `parts` is empty for an atom; `sign` is `*` for a product and `+` for a sum."""

    __slots__ = ("_parent", "hint", "parts", "pins", "roles", "sign", "size")

    def __init__(self, size: int, hint: int | None = None, sign: str = "", parts: Sequence[Axis] = ()) -> None:
        self.size, self.hint, self.sign, self.parts = size, size if hint is None else hint, sign, list(parts)
        self._parent: Axis | None = None
        self.pins: list[Pin] = []
        self.roles: set[str] = set()

    def root(self) -> Axis:
        """The representative of this axis's class (with path halving)."""
        axis = self
        while axis._parent is not None:
            if axis._parent._parent is not None:
                axis._parent = axis._parent._parent
            axis = axis._parent
        return axis

    def __repr__(self) -> str:
        root = self.root()
        if not root.sign:
            return str(root.hint)
        return "(" + (" " if root.sign == "*" else " + ").join(map(repr, _flat(root, root.sign))) + ")"


def atom(size: int, hint: int | None = None) -> Axis:
    """A new axis of which nothing is known but its size."""
    return Axis(size, hint)


def product(factors: Iterable[Axis]) -> Axis:
    """`(a b c)`, row-major; factors of size one are dropped, a single factor is returned as it is."""
    kept = [f for f in (factor.root() for factor in factors) if f.size != 1]
    if len(kept) == 1:
        return kept[0]
    return Axis(prod(f.size for f in kept), prod(f.hint for f in kept), "*" if kept else "", kept)


def total(terms: Iterable[Axis]) -> Axis:
    """`(a + b + c)`; terms of size zero are dropped, a single term is returned as it is."""
    kept = [t for t in (term.root() for term in terms) if t.size != 0]
    if len(kept) == 1:
        return kept[0]
    return Axis(sum(t.size for t in kept), sum(t.hint for t in kept), "+" if kept else "", kept)


def pin(axis: Axis, why: Pin) -> bool:
    """Demand that the axis, and all that it is or will be made of, keeps its extent; False if it is demanded already."""
    root = axis.root()
    if any(known.code == why.code for known in root.pins):  # the first reason of each code is enough; more would only cost time
        return False
    root.pins.append(why)
    return True


def unify(a: Axis, b: Axis, why: Pin) -> bool:
    """Make two axes equal. Returns False, with both sides pinned, where they have no common refinement."""
    a, b = a.root(), b.root()
    if a is b or a.size == b.size == 1:
        return True
    if a.size != b.size or not _unify_roots(a, b, why):
        clash = Pin(f"no common refinement of {a!r} and {b!r}", why.node, why.source)
        for side in (a, b):
            # a side may be a product that was built for this equation and that no tensor has, so its parts are pinned one by one
            for axis in (side, *leaves(side)):
                pin(axis, clash)
        return False
    return True


def factors_of(axis: Axis) -> list[Axis]:
    """The factors of a product, flat and outermost first; any other axis is its own only factor."""
    return _flat(axis.root(), "*")


def terms_of(axis: Axis) -> list[Axis]:
    """The terms of a sum, flat and in order; any other axis is its own only term."""
    return _flat(axis.root(), "+")


def leaves(axis: Axis) -> list[Axis]:
    """All atoms below an axis, in order, with repetition."""
    found: list[Axis] = []
    stack = [axis.root()]
    while stack:
        top = stack.pop()
        if top.sign:
            stack.extend(part.root() for part in reversed(top.parts))
        else:
            found.append(top)
    return found


def fold(axis: Axis, leaf: Callable[[Axis], T], times: Callable[[list[T]], T], plus: Callable[[list[T]], T]) -> T:
    """Evaluate an axis bottom-up: `leaf` on atoms, `times` on products, `plus` on sums."""
    root = axis.root()
    if not root.sign:
        return leaf(root)
    values = [fold(part, leaf, times, plus) for part in root.parts]
    return times(values) if root.sign == "*" else plus(values)


def positions(axis: Axis, kept: Callable[[Axis], torch.Tensor | None]) -> torch.Tensor | None:
    """Indices of a dim that stay when each leaf keeps `kept(leaf)` (ascending units; `None` keeps all).

    Returns `None` where everything stays. Products keep the grid of their factors, sums keep each term's at its offset.
    """
    root = axis.root()
    if not root.sign:
        return kept(root)
    parts = [part.root() for part in root.parts]
    found = [positions(part, kept) for part in parts]
    if all(f is None for f in found):
        return None
    if root.sign == "*":
        grid = torch.zeros(1, dtype=torch.long)
        for part, f in zip(parts, found, strict=True):
            inner = torch.arange(part.size) if f is None else f
            grid = (grid[:, None] * part.size + inner[None, :]).flatten()
        return grid
    pieces, offset = [], 0
    for part, f in zip(parts, found, strict=True):
        pieces.append((torch.arange(part.size) if f is None else f) + offset)
        offset += part.size
    return torch.cat(pieces)


def spread(axis: Axis, value: Callable[[Axis], torch.Tensor | None]) -> torch.Tensor | None:
    """A vector along a dim from vectors along its leaves (`None` stands for ones), last dim of the leaf's value.

    Products multiply (Kronecker), sums concatenate. Leading dims of the values (a batch of gates) broadcast.
    """
    root = axis.root()
    if not root.sign:
        return value(root)
    parts = [part.root() for part in root.parts]
    found = [spread(part, value) for part in parts]
    given = [f for f in found if f is not None]
    if not given:
        return None
    one = given[0]
    ones = [one.new_ones(part.size) if f is None else f for part, f in zip(parts, found, strict=True)]
    if root.sign == "*":
        whole = ones[0]
        for inner in ones[1:]:
            whole = (whole.unsqueeze(-1) * inner.unsqueeze(-2)).flatten(-2)
        return whole
    lead = torch.broadcast_shapes(*(v.shape[:-1] for v in ones))
    return torch.cat([v.expand(*lead, v.shape[-1]) for v in ones], dim=-1)


# -- unification -----------------------------------------------------------------------------------------------------


def _link(child: Axis, parent: Axis) -> None:
    child._parent = parent
    for why in child.pins:
        pin(parent, why)
    parent.roles |= child.roles
    child.parts = []


def _bind(axis: Axis, sign: str, parts: Sequence[Axis]) -> None:
    """Refine an atom. Its pins stay on it and hold for all its parts."""
    axis.sign, axis.parts = sign, list(parts)


def _flat(root: Axis, sign: str) -> list[Axis]:
    if root.sign != sign:
        return [root]
    if any(p._parent is not None or p.sign == sign for p in root.parts):
        flat: list[Axis] = []
        for part in root.parts:
            inner = part.root()
            if inner.sign == sign and inner.pins:
                for axis in _flat(inner, sign):
                    for why in inner.pins:
                        pin(axis, why)
            flat.extend(_flat(inner, sign))
        root.parts = flat
    return list(root.parts)


def _unify_roots(a: Axis, b: Axis, why: Pin) -> bool:
    if not a.sign:
        _link(a, b)
        return True
    if not b.sign:
        _link(b, a)
        return True
    if a.sign != b.sign:
        whole, parts = (a, b) if a.sign == "*" else (b, a)
        if not _product_with_sum(whole, parts, why):
            return False
        _link(parts, whole)
        return True
    done = _products(factors_of(a), factors_of(b), why) if a.sign == "*" else _sums(terms_of(a), terms_of(b), why)
    if done and a.root() is not b.root():
        _link(a.root(), b.root())
    return done


def _products(left: list[Axis], right: list[Axis], why: Pin) -> bool:
    """Walk two factor lists from the outside; the larger factor must be the smaller times a rest."""
    left, right = left[::-1], right[::-1]
    while left and right:
        x, y = left.pop().root(), right.pop().root()
        if x.sign == "*" or y.sign == "*":  # refined by an earlier step of this walk
            left.extend(reversed(factors_of(x)))
            right.extend(reversed(factors_of(y)))
            continue
        if x.size == y.size:
            if not unify(x, y, why):
                return False
            continue
        large, small, rest_of = (x, y, left) if x.size > y.size else (y, x, right)
        if large.size % small.size:
            return False
        rest = atom(large.size // small.size, large.hint // small.hint if small.hint else 0)
        if large.sign == "+":
            if not unify(product([small, rest]), large, why):
                return False
        else:
            _bind(large, "*", [small, rest])
        rest_of.append(rest)
    return not left and not right


def _sums(left: list[Axis], right: list[Axis], why: Pin) -> bool:
    """Walk two term lists; where a boundary of one falls inside a term of the other, that term is cut."""
    left, right = left[::-1], right[::-1]
    while left and right:
        x, y = left.pop().root(), right.pop().root()
        if x.sign == "+" or y.sign == "+":
            left.extend(reversed(terms_of(x)))
            right.extend(reversed(terms_of(y)))
            continue
        if x.size == y.size:
            if not unify(x, y, why):
                return False
            continue
        large, small, rest_of = (x, y, left) if x.size > y.size else (y, x, right)
        cuts = cut(large, [small.size, large.size - small.size], why)
        if cuts is None or not unify(cuts[0], small, why):
            return False
        rest_of.append(cuts[1])
    return not left and not right


def _product_with_sum(whole: Axis, parts: Axis, why: Pin) -> bool:
    terms = terms_of(parts)
    pieces = cut(whole, [t.size for t in terms], why)
    return pieces is not None and all(unify(piece, term, why) for piece, term in zip(pieces, terms, strict=True))


def cut(axis: Axis, sizes: Sequence[int], why: Pin) -> list[Axis] | None:
    """Split an axis into consecutive pieces of the given sizes, refining it; None where its structure forbids that."""
    root = axis.root()
    if len(sizes) == 1:
        return [root]
    if root.sign == "*":
        outer, *inner = factors_of(root)
        width = root.size // outer.size
        if any(size % width for size in sizes):
            return None
        pieces = cut(outer, [size // width for size in sizes], why)
        if pieces is None:
            return None
        for piece in pieces:
            if piece.size == 1:  # (1 x) is written x: a unit of one has no axis of its own any more, so it must stay
                pin(piece, Pin("a single slice of a larger axis", why.node, why.source))
        return [product([piece, *inner]) for piece in pieces]
    if root.sign == "+":
        waiting, pieces = terms_of(root)[::-1], []
        for size in sizes:
            got: list[Axis] = []
            room = size
            while room > 0:
                term = waiting.pop().root()
                if term.sign == "+":
                    waiting.extend(reversed(terms_of(term)))
                    continue
                if term.size > room:
                    halves = cut(term, [room, term.size - room], why)
                    if halves is None:
                        return None
                    waiting.append(halves[1])
                    term = halves[0]
                got.append(term)
                room -= term.size
            pieces.append(total(got))
        return pieces
    # hints of the pieces: fixed sizes are their own hints, one symbolic piece takes what is left
    fixed = sum(size for size in sizes if size < SYMBOLIC)
    fresh = [atom(size, size if size < SYMBOLIC else max(root.hint - fixed, 1)) for size in sizes]
    _bind(root, "+", fresh)
    return fresh

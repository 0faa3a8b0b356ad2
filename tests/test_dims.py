"""The algebra of axes: what unification promises, on random axes."""

from __future__ import annotations

from math import prod

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from optin_fx import dims
from optin_fx.dims import SYMBOLIC, Axis, Pin, atom, cut, factors_of, fold, leaves, pin, positions, product, spread, terms_of, total, unify

WHY = Pin("a test", "node")
Shape = int | tuple[str, tuple["Shape", ...]]
settings.register_profile("dims", deadline=None, database=None, derandomize=True, max_examples=150)
settings.load_profile("dims")


def divisors(n: int) -> list[int]:
    return [d for d in range(2, n) if n % d == 0]


@st.composite
def axes(draw: st.DrawFn, size: int, depth: int = 3) -> Axis:
    """A random axis of a size."""
    kinds = ["atom"] + (["*"] if depth and divisors(size) else []) + (["+"] if depth and size > 1 else [])
    kind = draw(st.sampled_from(kinds))
    if kind == "*":
        outer = draw(st.sampled_from(divisors(size)))
        return product([draw(axes(outer, depth - 1)), draw(axes(size // outer, depth - 1))])
    if kind == "+":
        first = draw(st.integers(1, size - 1))
        return total([draw(axes(first, depth - 1)), draw(axes(size - first, depth - 1))])
    return atom(size)


SIZES = st.sampled_from([1, 2, 3, 4, 6, 8, 12, 24])
pairs = SIZES.flatmap(lambda n: st.tuples(axes(n), axes(n)))


def structure(axis: Axis, names: dict[Axis, int] | None = None) -> object:
    """The axis as nested tuples, its leaves numbered in order of appearance: equal for equal refinements."""
    names = {} if names is None else names
    root = axis.root()
    if not root.sign:
        return (root.size, names.setdefault(root, len(names)))
    flat = factors_of(root) if root.sign == "*" else terms_of(root)
    return (root.sign, *(structure(part, names) for part in flat))


def pinned(axis: Axis) -> set[Axis]:
    """Leaves that are pinned, on their own or through an axis that they are part of."""
    root = axis.root()
    if root.pins:
        return set(leaves(root))
    return set().union(*(pinned(part) for part in root.parts)) if root.sign else set()


def evaluated(axis: Axis) -> int:
    return fold(axis, lambda leaf: leaf.size, prod, sum)


@given(pairs)
def test_unified_axes_are_one(pair: tuple[Axis, Axis]) -> None:
    a, b = pair
    if unify(a, b, WHY):
        assert a.root() is b.root() or a.size == 1
        assert structure(a) == structure(b)


@given(pairs)
def test_sizes_stay(pair: tuple[Axis, Axis]) -> None:
    size = pair[0].size
    unify(*pair, WHY)
    for axis in pair:
        assert evaluated(axis) == size
        assert sum(part.size for part in terms_of(axis)) == size
        assert prod(part.size for part in factors_of(axis)) == size


@given(pairs)
def test_no_common_refinement_pins_both_sides(pair: tuple[Axis, Axis]) -> None:
    a, b = pair
    if not unify(a, b, WHY):
        for side in (a, b):
            assert pinned(side) == set(leaves(side))
            assert all(leaf.pins for leaf in leaves(side)), "a leaf must know it by itself: the side may be no tensor's dim"


@given(st.data(), SIZES)
def test_unifying_is_symmetric(data: st.DataObject, size: int) -> None:
    plan = [data.draw(axes(size)), data.draw(axes(size))]
    twin = [copied(axis) for axis in plan]
    assert unify(plan[0], plan[1], WHY) == unify(twin[1], twin[0], WHY)
    assert structure(plan[0]) == structure(twin[0])


def copied(axis: Axis) -> Axis:
    root = axis.root()
    return Axis(root.size, root.hint, root.sign, [copied(part) for part in root.parts])


@given(pairs)
def test_unifying_again_changes_nothing(pair: tuple[Axis, Axis]) -> None:
    done = unify(*pair, WHY)
    before = structure(pair[0])
    assert unify(*pair, WHY) == done
    assert structure(pair[0]) == before


@given(st.data(), pairs)
def test_positions_are_where_the_mask_is_one(data: st.DataObject, pair: tuple[Axis, Axis]) -> None:
    """`positions` (indices), `spread` (a vector) and the sizes of what is kept agree, before and after refinement."""
    unify(*pair, WHY)
    kept: dict[Axis, torch.Tensor] = {}
    for leaf in leaves(pair[0]):
        if leaf not in kept:
            units = data.draw(st.sets(st.integers(0, leaf.size - 1), min_size=1))
            kept[leaf] = torch.tensor(sorted(units))
    mask = spread(pair[0], lambda leaf: torch.zeros(leaf.size).index_fill_(0, kept[leaf], 1.0))
    index = positions(pair[0], lambda leaf: kept[leaf])
    assert mask is not None
    assert index is not None
    assert mask.nonzero().flatten().tolist() == index.tolist()
    assert len(index) == fold(pair[0], lambda leaf: len(kept[leaf]), prod, sum)


def test_positions_of_a_product_and_of_the_same_axis_as_a_sum() -> None:
    inner = atom(3)
    whole, parts = product([atom(4), inner]), total([product([atom(2), inner]), product([atom(2), inner])])
    assert unify(whole, parts, WHY)
    left, right = (terms_of(factors_of(whole)[0])[i].root() for i in (0, 1))
    kept = {left: torch.tensor([1]), right: torch.tensor([0]), inner.root(): torch.tensor([0, 2])}
    expected = [3 * row + column for row in (1, 2) for column in (0, 2)]
    for axis in (whole, parts):
        found = positions(axis, lambda leaf: kept[leaf])
        assert found is not None
        assert found.tolist() == expected


def test_everything_kept_needs_no_index() -> None:
    assert positions(product([atom(4), atom(3)]), lambda leaf: None) is None
    assert spread(product([atom(4), atom(3)]), lambda leaf: None) is None


@given(st.data(), SIZES)
def test_pieces_of_a_cut_are_the_axis(data: st.DataObject, size: int) -> None:
    axis = data.draw(axes(size))
    first = data.draw(st.integers(0, size))
    pieces = cut(axis, [n for n in (first, size - first) if n], WHY)
    if pieces is not None:
        assert [piece.size for piece in pieces] == [n for n in (first, size - first) if n]
        whole = [leaf for leaf in leaves(axis) if leaf.size > 1]
        found = [leaf for piece in pieces for leaf in leaves(piece) if leaf.size > 1]
        assert found == whole or axis.root().sign == "*"
        assert evaluated(axis) == size


def test_what_meets_becomes_its_common_refinement() -> None:
    width = atom(768)
    assert unify(product([atom(12), atom(64)]), width, WHY)
    assert repr(width) == "(12 64)"
    assert unify(width, product([atom(2), atom(384)]), WHY)
    assert repr(width) == "(2 6 64)"
    assert unify(width, total([atom(384), atom(384)]), WHY)
    assert repr(width) == "((1 + 1) 6 64)"


def test_rotation_pairs() -> None:
    """A head whose two halves are one axis: each pair goes as a whole."""
    half = atom(16)
    head = total([half, half])
    width = product([atom(8), head])
    found = positions(width, lambda leaf: torch.tensor([3]) if leaf is half.root() else torch.tensor([0, 5]))
    assert found is not None
    assert found.tolist() == [3, 19, 163, 179]


def test_a_single_slice_of_a_larger_axis_stays() -> None:
    whole = product([atom(3), atom(6)])
    assert cut(whole, [6, 12], WHY) is not None
    single, rest = terms_of(factors_of(whole)[0])
    assert [str(why) for why in single.pins] == ["a single slice of a larger axis at %node"]
    assert rest.size == 2
    assert not rest.pins


@pytest.mark.parametrize("axis", [atom(4), product([atom(2), atom(2)]), total([atom(1), atom(3)])], ids=repr)
def test_a_pin_holds_for_all_that_an_axis_becomes(axis: Axis) -> None:
    pin(axis, WHY)
    unify(axis, total([atom(2), product([atom(2), atom(1)])]), WHY)
    assert pinned(axis) == set(leaves(axis))


def test_the_first_reason_is_kept() -> None:
    axis = atom(4)
    pin(axis, Pin("first", "a", "model.py:3"))
    pin(axis, Pin("second", "b"))
    assert [str(p) for p in axis.pins] == ["first at %a, model.py:3"]


def test_the_text_of_a_clash() -> None:
    a, b = product([atom(4), atom(4)]), total([atom(6), atom(10)])
    assert not unify(a, b, WHY)
    assert str(a.root().pins[0]) == "no common refinement of (4 4) and (6 + 10) at %node"


def test_symbolic_sizes_divide_exactly() -> None:
    batch = 2**61 - 1
    whole = atom(batch * 12, 24)
    assert unify(whole, product([atom(batch, 2), atom(3), atom(4)]), WHY)
    assert repr(whole) == "(2 3 4)"
    other = atom(batch * 12, 24)
    assert unify(product([atom(3), atom(batch * 4, 8)]), other, WHY)
    assert not unify(other, product([atom(batch, 2), atom(12)]), WHY), "3 is not a divisor of a symbolic batch"
    assert batch > SYMBOLIC


def test_work_grows_linearly(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sum that grows by one term at each step, as in DenseNet, and a chain of equal products."""

    def work(n: int) -> int:
        calls = 0
        flat = dims._flat

        def counted(root: Axis, sign: str) -> list[Axis]:
            nonlocal calls
            calls += 1
            return flat(root, sign)

        with monkeypatch.context() as patch:
            patch.setattr(dims, "_flat", counted)
            first = product([atom(4), atom(6)])
            for _ in range(n):
                following = atom(24)
                unify(first, following, WHY)
                unify(following, product([atom(4), atom(6)]), WHY)
                first = following
        return calls

    assert work(400) <= 4.2 * work(100)

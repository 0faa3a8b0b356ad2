"""Polynomials in the extents of groups."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

Monomials = dict[tuple[str, ...], float]


class Polynomial:
    """A polynomial in group extents; a monomial is a sorted tuple of group names, repeated for powers."""

    def __init__(self, monomials: Mapping[tuple[str, ...], float] | None = None) -> None:
        self.monomials: Monomials = dict(monomials or {})
        self._index: dict[str, list[tuple[tuple[str, ...], float]]] = {}
        self._index_size = 0

    def __add__(self, other: Polynomial) -> Polynomial:
        result = Polynomial(self.monomials)
        result.add(other)
        return result

    def add(self, other: Polynomial, times: float = 1.0) -> None:
        """Add another polynomial in place."""
        for names, value in other.monomials.items():
            self.monomials[names] = self.monomials.get(names, 0.0) + value * times

    def __mul__(self, other: Polynomial) -> Polynomial:
        result: Monomials = {}
        for left, a in self.monomials.items():
            for right, b in other.monomials.items():
                names = tuple(sorted(left + right)) if left and right else left or right
                result[names] = result.get(names, 0.0) + a * b
        return Polynomial(result)

    def __call__(self, extents: Mapping[str, float]) -> float:
        """The value at some extents (every group must be given)."""
        total = 0.0
        for names, value in self.monomials.items():
            for name in names:
                value *= extents[name]
            total += value
        return total

    def derivative(self, name: str, extents: Mapping[str, float]) -> float:
        """How much one more unit of a group costs at some extents."""
        total = 0.0
        for names, value in self._by_name().get(name, ()):
            power = names.count(name)
            skipped = False
            for other in names:
                if other == name and not skipped:
                    skipped = True
                else:
                    value *= extents[other]
            total += value * power
        return total

    def _by_name(self) -> dict[str, list[tuple[tuple[str, ...], float]]]:
        if self._index_size != len(self.monomials):
            self._index = {}
            for names, value in self.monomials.items():
                for name in dict.fromkeys(names):
                    self._index.setdefault(name, []).append((names, value))
            self._index_size = len(self.monomials)
        return self._index

    def times(self, factor: float) -> Polynomial:
        """The polynomial times a number."""
        return Polynomial({names: factor * value for names, value in self.monomials.items()})


def product_of(factors: Iterable[Polynomial]) -> Polynomial:
    """The product; one for none."""
    result = Polynomial({(): 1.0})
    for factor in factors:
        result = result * factor
    return result


def sum_of(terms: Iterable[Polynomial]) -> Polynomial:
    """The sum; zero for none."""
    result = Polynomial()
    for term in terms:
        result.add(term)
    return result

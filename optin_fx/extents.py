"""The extent of any axis as a polynomial in the extents of the prunable groups."""

from __future__ import annotations

from optin_fx.analysis import Analysis
from optin_fx.dims import Axis, fold
from optin_fx.groups import groups_of, leaf_names
from optin_fx.polynomial import Polynomial, product_of, sum_of


class Extents:
    """Maps an axis to its extent; what is pinned counts as in the example inputs. Each axis is worked out once."""

    def __init__(self, analysis: Analysis) -> None:
        self._names = leaf_names(analysis)
        self._free = {g.name for g in groups_of(analysis).free}
        self._made: dict[Axis, Polynomial] = {}

    def __call__(self, axis: Axis) -> Polynomial:
        root = axis.root()
        if root not in self._made:
            self._made[root] = fold(root, self._leaf, product_of, sum_of)
        return self._made[root]

    def _leaf(self, axis: Axis) -> Polynomial:
        name = self._names.get(axis)
        return Polynomial({(name,): 1.0}) if name in self._free else Polynomial({(): float(axis.hint)})

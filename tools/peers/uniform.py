"""The same share of every group: no allocation at all."""

from __future__ import annotations

from dataclasses import dataclass

from optin_fx.space import BudgetedSearch, Counts, Space


@dataclass(frozen=True)
class SearchUniform(BudgetedSearch):
    """Keep the best `round(share * extent)` units of every group, with the largest share that meets the budget, to 1 in 1,000.

    What stays of the budget because of rounding is not spent.

    Attributes:
        budget, kinds, freeze, widths, min_keep, min_width, align: see `BudgetedSearch`.
    """

    def choose(self, space: Space) -> Counts:
        """See the class."""
        for step in range(1000, 0, -1):
            counts = {name: max(space.least[name], round(step / 1000 * g.extent)) for name, g in space.groups.items()}
            if space.bound.holds(counts):
                return counts
        return dict(space.least)

"""Search by a multiple-choice knapsack over the groups' widths."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from optin_fx.multiple_choice import Items, choose
from optin_fx.polynomial import Polynomial
from optin_fx.space import BudgetedSearch, Counts, Space


@dataclass(frozen=True)
class SearchKnapsack(BudgetedSearch):
    """The widths with the largest kept score within all limits at once, and a proof of how good they are.

    Every width of every group is an item with the sum of its best units' scores and its exact cost; one item per group is
    taken (scipy's HiGHS, `optin_fx.multiple_choice`). Costs may be any function of a width, such as a latency with steps. Where
    no limit multiplies the widths of two groups (heads and neurons of a transformer, latency tables), the result is the optimum, up to the
    gap in the plan's provenance. Else (channels of convolutions in a row) costs are taken along each group with the others as they
    are, the selection moves within a factor of the current widths, which shrinks until nothing improves, and the gap is
    that of the last round, an estimate. The plan is checked by its exact cost.

    Attributes:
        budget, kinds, freeze, min_keep, min_width, align: see `BudgetedSearch`.
        rounds: at most so many rounds where costs are products.
        reach: factor by which a width may change in the first round.
        tolerance: gap at which branch and bound may stop.
    """

    rounds: int = 12
    reach: float = 2.0
    tolerance: float = 1e-6

    def choose(self, space: Space) -> Counts:
        """Counts per group of the best selection found."""
        counts = space.whole()
        if space.bound.holds(counts):
            return counts
        if _separable(space):
            found = self._select(space, counts, float("inf"), np.array([c.allowed for c in space.bound.ceilings]))
            assert found is not None, "the least widths meet the budget"
            return found
        counts, reach = _uniform(space), self.reach
        for _ in range(self.rounds):
            found = self._improved(space, counts, reach)
            if space.value(found) > space.value(counts) * (1 + 1e-9):
                counts = found
            else:
                reach = reach**0.5
                if reach < 1.05:
                    break
        return counts

    def _improved(self, space: Space, counts: Counts, reach: float) -> Counts:
        """The selection nearby; if its exact cost is over the limits, with as much less allowed as brings it within."""
        allowed = np.array([c.allowed for c in space.bound.ceilings])
        for _ in range(6):
            found = self._select(space, counts, reach, allowed)
            if found is None:
                return counts
            if space.bound.holds(found):
                space.spend(found, space.gains_per(space.prices(found)))
                return found
            extents = space.bound.model.extents(found)
            exact = np.array([c.measure(extents) for c in space.bound.ceilings])
            allowed = allowed - 1.05 * np.maximum(exact - np.array([c.allowed for c in space.bound.ceilings]), 0)
        return counts

    def _select(self, space: Space, counts: Counts, reach: float, allowed: np.ndarray) -> Counts | None:
        """The best widths within a factor of some counts, costs being taken along each group alone."""
        bound = space.bound
        here = bound.model.extents(counts)
        fixed = np.array([c.measure(here) for c in bound.ceilings])
        widths, items = [], []
        for name, count in counts.items():
            own = [w for w in space.choices(name) if w == count or count / reach <= w <= max(count, 1) * reach]
            costs = [[c.measure({**here, name: float(w)}) for w in own] for c in bound.ceilings]
            widths.append(own)
            items.append(Items(space.prefix[name][own].numpy(), np.array(costs) - fixed[:, None]))
        found = choose(items, allowed * (1 + 1e-10) - fixed, self.tolerance)
        if found is None:
            return None
        space.notes["gap"] = found.gap
        return {name: own[at] for name, own, at in zip(counts, widths, found.taken, strict=True)}


def _separable(space: Space) -> bool:
    """True if every limit is a sum of functions of one group's width each."""
    chosen = set(space.groups)
    for ceiling in space.bound.ceilings:
        measure = ceiling.measure
        if isinstance(measure, Polynomial):
            if any(len(chosen.intersection(names)) > 1 for names in measure.monomials):
                return False
        elif not getattr(measure, "separable", False):
            return False
    return True


def _uniform(space: Space) -> Counts:
    """The largest common share of all groups that the budget allows."""
    low, high, best = 0.0, 1.0, dict(space.least)
    for _ in range(30):
        middle = 0.5 * (low + high)
        tried = {name: space.round_down(name, int(middle * g.extent)) for name, g in space.groups.items()}
        if space.bound.holds(tried):
            low, best = middle, tried
        else:
            high = middle
    return best

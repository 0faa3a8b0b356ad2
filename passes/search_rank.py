"""Search by a global ranking of score per cost, with exact costs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from optin_fx.candidates import in_graph_order
from optin_fx.space import BudgetedSearch, Counts, Space


@dataclass(frozen=True)
class SearchRank(BudgetedSearch):
    """Keep the units of highest score per cost, globally, until the budget is spent.

    What a unit costs is the derivative of the exact cost polynomial at the current extents; ranking and costs are
    iterated until they agree, then left-over budget is filled unit by unit in the order of the ranking. Optimal for additive
    scores and linear costs up to one unit (a knapsack's greedy bound). The budget is asserted on the result.

    Attributes:
        budget, kinds, freeze, widths, min_keep, min_width, align: see `BudgetedSearch`.
        balance: no group keeps less than this times the budget's share of the dense cost, where the budget can be met so; 0 is free
            choice. Single-unit scores are blind to what many units lose together. At 0.5, sentence embeddings at 50 % of the FLOPs
            came closer to the dense ones, and a classifier, whose last layers matter at one token only, lost accuracy.
        discount: by how much less the scores of the graph's first group count than those of its last; in between in proportion to the
            place. What goes early, the refits behind can partly make up for. Scores that are no losses are left alone.
        rounds: at most so many iterations of ranking against cost.
    """

    balance: float = 0.0
    discount: float = 0.0
    rounds: int = 12

    def choose(self, space: Space) -> Counts:
        """Counts per group: the lowest threshold on score per cost that the budget allows, then single steps.

        Scores that are no losses (magnitude) are only comparable within a group, where the cost is the same: they are ranked as they are.
        """
        balanced = self.least(space.groups, space.step, max(self.min_keep, self.balance * space.bound.share()))
        if space.bound.holds(balanced):
            space = replace(space, least=balanced)
        if self.discount and space.additive:
            space = replace(space, gains=self._discounted(space))

        def select_at(prices: Mapping[str, float], counts: Counts) -> Counts:
            worth = space.gains_per(prices) if space.additive else space.gains
            found = _threshold(space, worth)
            space.spend(found, worth)
            return found

        return space.settled(select_at, self.rounds)

    def _discounted(self, space: Space) -> dict[str, torch.Tensor]:
        """The scores as they count; the order of units within a group stays."""
        names = [g.name for g in in_graph_order(space.program, list(space.groups.values()))]
        shares = {name: 1 - self.discount * (1 - (place + 1) / len(names)) for place, name in enumerate(names)}
        return {name: gains * shares[name] for name, gains in space.gains.items()}


def _threshold(space: Space, worth: Mapping[str, torch.Tensor]) -> Counts:
    levels = torch.cat(list(worth.values())).unique()

    def counts_at(level: float) -> Counts:
        return {name: space.round_down(name, int((values >= level).sum())) for name, values in worth.items()}

    low, high = 0, len(levels)  # counts at `high` meet the budget, at `low` perhaps not
    while low < high:
        middle = (low + high) // 2
        if space.bound.holds(counts_at(float(levels[middle]))):
            high = middle
        else:
            low = middle + 1
    return counts_at(float(levels[high])) if high < len(levels) else dict(space.least)

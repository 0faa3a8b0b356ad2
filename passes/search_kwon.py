"""The mask search of Kwon et al. (NeurIPS 2022), for any number of unit costs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from optin_fx.space import BudgetedSearch, Counts, Space


@dataclass(frozen=True)
class SearchKwon(BudgetedSearch):
    """The set of units with the largest sum of scores that the budget allows, units of equal cost being ranked together.

    Kwon et al. (2022, algorithm 1) loop over the number of heads and fill what is left with neurons, which is exact as all heads cost
    the same and all neurons do. Here units fall into as many classes as there are unit costs: classes are joined one by one, keeping
    the combinations that no other beats and that can still lead to the best, which is exact for any number of classes and
    their loop for two. Where costs are products of widths, unit costs are the derivatives at the current widths, and search and costs
    are iterated; the plan is checked by its exact cost. Unlike the public code, a budget that heads alone exceed is met, too.

    Attributes:
        budget, kinds, freeze, min_keep, min_width, align: see `BudgetedSearch`.
        rounds: at most so many iterations of search against cost.
    """

    rounds: int = 8

    def choose(self, space: Space) -> Counts:
        """Counts per group of the best selection found, by score kept."""

        def select_at(prices: Mapping[str, float], counts: Counts) -> Counts:
            found = _within(space, prices, counts)
            space.spend(found, space.gains_per(prices))
            return found

        return space.settled(select_at, self.rounds)


def _within(space: Space, prices: Mapping[str, float], counts: Counts) -> Counts:
    """The best selection at linear prices; if its exact cost is over the budget, at the largest allowance for which it is not."""
    used = space.bound.tightness(space.bound.model.extents(counts))
    allowance = 1 - used + sum(price * (counts[name] - space.least[name]) for name, price in prices.items())
    classes = _classes(space, prices)
    found = _counts(space, classes, select([c[:2] for c in classes], allowance))
    if space.bound.holds(found):
        return found
    low, high, found = 0.0, allowance, dict(space.least)
    for _ in range(20):
        middle = 0.5 * (low + high)
        tried = _counts(space, classes, select([c[:2] for c in classes], middle))
        if space.bound.holds(tried):
            low, found = middle, tried
        else:
            high = middle
    return found


Class = tuple[float, np.ndarray, list[str]]
"""A unit cost, the values of its items in descending order, and the group that each item belongs to."""


def _classes(space: Space, prices: Mapping[str, float]) -> list[Class]:
    items: dict[float, list[tuple[float, str]]] = {}
    for name, sums in space.prefix.items():
        widths = space.choices(name)
        for narrow, wide in pairwise(widths):
            price = float(f"{prices[name] * (wide - narrow):.9g}")  # equal but for rounding
            items.setdefault(price, []).append((float(sums[wide] - sums[narrow]), name))
    found = []
    for price, own in sorted(items.items(), key=lambda item: len(item[1])):
        own.sort(key=lambda item: -item[0])
        found.append((price, np.array([value for value, _ in own]), [name for _, name in own]))
    return found


def _counts(space: Space, classes: list[Class], taken: list[int]) -> Counts:
    steps = dict.fromkeys(space.groups, 0)
    for (_, _, names), count in zip(classes, taken, strict=True):
        for name in names[:count]:
            steps[name] += 1
    return {name: space.choices(name)[count] for name, count in steps.items()}


def select(classes: list[tuple[float, np.ndarray]], allowance: float) -> list[int]:
    """How many of each class's items to take so that their values' sum is largest within an allowance.

    Args:
        classes: (cost of one item, values in descending order); the class of most items should come last.

    Returns:
        One count per class: exact, by dynamic programming over undominated combinations with a linear-programming bound.
    """
    sums = [np.concatenate([[0.0], np.cumsum(values)]) for _, values in classes]
    rest = [_relaxed(classes[i:]) for i in range(len(classes) + 1)]
    floor = _greedy(classes, allowance) * (1 - 1e-12)
    spent, gained = np.zeros(1), np.zeros(1)
    history: list[tuple[np.ndarray, np.ndarray]] = []
    for i, (cost, _) in enumerate(classes):
        if i == len(classes) - 1:  # all that still fits
            counts = np.clip((allowance - spent + 1e-12) // cost, 0, len(sums[i]) - 1).astype(int)
            parents = np.arange(len(spent))
            spent, gained = spent + counts * cost, gained + sums[i][counts]
        else:
            most = int(np.clip((allowance + 1e-12) // cost, 0, len(sums[i]) - 1))
            grid = np.arange(most + 1)
            parents, counts = (a.ravel() for a in np.meshgrid(np.arange(len(spent)), grid, indexing="ij"))
            spent, gained = spent[parents] + counts * cost, gained[parents] + sums[i][counts]
            bound = gained + np.interp(allowance - spent, *rest[i + 1])
            keep = np.flatnonzero((spent <= allowance + 1e-12) & (bound >= floor))
            keep = keep[np.lexsort((-gained[keep], spent[keep]))]
            before = np.concatenate([[-np.inf], np.maximum.accumulate(gained[keep])[:-1]])
            keep = keep[gained[keep] > before]
            parents, counts, spent, gained = parents[keep], counts[keep], spent[keep], gained[keep]
        history.append((parents, counts))
    at = int(np.argmax(np.where(spent <= allowance + 1e-9, gained, -np.inf)))
    taken = []
    for parents, counts in reversed(history):
        taken.append(int(counts[at]))
        at = int(parents[at])
    return taken[::-1]


def _relaxed(classes: list[tuple[float, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Spent and gained along the fractional knapsack's optimum: items by value per cost."""
    if not classes:
        return np.zeros(1), np.zeros(1)
    costs = np.concatenate([np.full(len(values), cost) for cost, values in classes])
    values = np.concatenate([values for _, values in classes])
    order = np.argsort(-values / costs, kind="stable")
    return np.concatenate([[0.0], np.cumsum(costs[order])]), np.concatenate([[0.0], np.cumsum(values[order])])


def _greedy(classes: list[tuple[float, np.ndarray]], allowance: float) -> float:
    """What the fractional optimum gains without its broken item: a value that can be had."""
    spent, gained = _relaxed(classes)
    return float(gained[np.searchsorted(spent, allowance, side="right") - 1]) if allowance >= 0 else 0.0

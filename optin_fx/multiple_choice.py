"""The multiple-choice knapsack: one width for every group, the largest value within several limits, and how far from it one is at most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Items:
    """The choices of one group: `values [choices]`, `costs [limits, choices]`."""

    values: np.ndarray
    costs: np.ndarray


@dataclass(frozen=True)
class Selection:
    """A choice for every group.

    Attributes:
        taken: index of each group's choice. value: sum of their values.
        bound: no selection within the limits is worth more.
    """

    taken: tuple[int, ...]
    value: float
    bound: float

    @property
    def gap(self) -> float:
        """How much more the best selection can be worth, as a share of this one."""
        return max(self.bound - self.value, 0.0) / max(abs(self.value), 1e-30)


def choose(groups: Sequence[Items], limits: np.ndarray, tolerance: float = 1e-6) -> Selection | None:
    """The best selection; None if none meets the limits.

    The linear relaxation (HiGHS) gives prices of the limits; a choice whose reduced value is further from its group's best than the
    relaxation from a selection at hand cannot be in a better one and is left out; what remains is solved by branch and bound (HiGHS).

    Args:
        limits: `[limits]`, largest sums of costs.
        tolerance: gap at which branch and bound may stop.
    """
    from scipy.optimize import linprog

    values, costs = np.concatenate([g.values for g in groups]), np.concatenate([g.costs for g in groups], axis=1)
    scale = max(float(np.abs(values).max()), 1e-300)
    sizes = np.maximum(np.abs(costs).max(1), 1e-300)  # HiGHS's tolerances are absolute: limits are brought to the size of one
    costs, limits = costs / sizes[:, None], limits / sizes
    groups = [Items(g.values, g.costs / sizes[:, None]) for g in groups]
    one = _ones([len(g.values) for g in groups])
    relaxed = linprog(-values / scale, A_ub=costs, b_ub=limits, A_eq=one, b_eq=np.ones(len(groups)), bounds=(0, 1), method="highs")
    if relaxed.status != 0:
        return None
    prices = -relaxed.ineqlin.marginals * scale
    ends = np.cumsum([0] + [len(g.values) for g in groups])
    reduced = [g.values - prices @ g.costs for g in groups]
    upper = float(sum(r.max() for r in reduced) + prices @ limits)
    start = _rounded(groups, reduced, limits)
    lower = -np.inf if start is None else sum(float(g.values[t]) for g, t in zip(groups, start, strict=True))
    keep = np.concatenate([r >= r.max() - (upper - lower) - 1e-12 * scale for r in reduced])
    found = _branch_and_bound(values, costs, limits, one, keep, scale, tolerance)
    if found is None:
        return None if start is None else Selection(tuple(start), lower, upper)
    chosen, bound = found
    taken = tuple(int(c) - int(ends[i]) for i, c in enumerate(chosen))
    value = float(values[chosen].sum())
    return Selection(taken, value, max(value, min(upper, bound)))


def _branch_and_bound(
    values: np.ndarray, costs: np.ndarray, limits: np.ndarray, one: object, keep: np.ndarray, scale: float, tolerance: float
) -> tuple[np.ndarray, float] | None:
    from scipy.optimize import Bounds, LinearConstraint, milp

    index = np.flatnonzero(keep)
    rows = one.tocsc()[:, index]  # type: ignore[attr-defined]
    bound, slack = np.inf, np.zeros_like(limits)
    for _ in range(4):
        done = milp(
            -values[index] / scale,
            integrality=np.ones(len(index)),
            bounds=Bounds(0, 1),
            constraints=[LinearConstraint(costs[:, index], ub=limits - slack), LinearConstraint(rows, 1, 1)],
            options={"mip_rel_gap": tolerance, "time_limit": 30.0},
        )
        if done.x is None:
            return None
        bound = min(bound, float(-done.mip_dual_bound) * scale) if not slack.any() else bound
        chosen = index[np.flatnonzero(done.x > 0.5)]
        over = costs[:, chosen].sum(1) - limits
        if (over <= 1e-12).all():
            return chosen, bound
        slack = slack + 2 * np.maximum(over, 0)  # within HiGHS's tolerance of a limit, but above it
    return None


def _ones(sizes: Sequence[int]) -> object:
    """Sparse `[groups, choices]`, one where a choice is the group's."""
    from scipy.sparse import csr_matrix

    total = sum(sizes)
    return csr_matrix((np.ones(total), np.arange(total), np.cumsum([0, *sizes])), shape=(len(sizes), total))


def _rounded(groups: Sequence[Items], reduced: Sequence[np.ndarray], limits: np.ndarray) -> list[int] | None:
    """The relaxation's favourite of every group; while over the limits, the cheapest step down somewhere."""
    taken = [int(r.argmax()) for r in reduced]
    used = sum(g.costs[:, t] for g, t in zip(groups, taken, strict=True))
    while (used > limits * (1 + 1e-12)).any():
        over = int(np.argmax(used - limits))
        steps = []
        for i, (g, r) in enumerate(zip(groups, reduced, strict=True)):
            cheaper = np.flatnonzero(g.costs[over] < g.costs[over, taken[i]])
            if len(cheaper):
                best = int(cheaper[r[cheaper].argmax()])
                steps.append((float(r[taken[i]] - r[best]), i, best))
        if not steps:
            return None
        _, i, best = min(steps)
        used = used + groups[i].costs[:, best] - groups[i].costs[:, taken[i]]
        taken[i] = best
    return taken

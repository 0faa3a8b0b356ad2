"""Budgets: `flops <= 50%`, `params <= 3e6`, several at once with `and`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from optin_fx.costs import Cost, CostModel
from optin_fx.errors import BudgetError
from optin_fx.plan import Plan

_UNITS = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12, "kb": 1e3, "mb": 1e6, "gb": 1e9}
_METRICS = ("flops", "macs", "params", "bytes")
_HOW = "write METRIC <= NUMBER, as in 'flops <= 50%', 'params <= 3M', 'flops <= 60% and bytes <= 20MB'; metrics: flops, macs, params, bytes"


@dataclass(frozen=True)
class Limit:
    """One inequality. `relative` limits are shares of the dense cost."""

    metric: str
    value: float
    relative: bool

    def allowed(self, dense: Cost) -> float:
        """The limit as an absolute cost."""
        return self.value * getattr(dense, self.metric) if self.relative else self.value

    def __str__(self) -> str:
        return f"{self.metric} <= {self.value:.6g}" if not self.relative else f"{self.metric} <= {100 * self.value:.6g}%"


@dataclass(frozen=True)
class Budget:
    """Inequalities that must all hold."""

    limits: tuple[Limit, ...]

    def __str__(self) -> str:
        return " and ".join(map(str, self.limits))

    def holds(self, cost: Cost, dense: Cost) -> bool:
        """True if a cost meets every limit (to one part in 10^9, for rounding)."""
        return all(getattr(cost, limit.metric) <= limit.allowed(dense) * (1 + 1e-9) for limit in self.limits)

    def tightness(self, cost: Cost, dense: Cost) -> float:
        """The largest ratio of a cost to its limit; at most one when the budget holds."""
        return max(getattr(cost, limit.metric) / max(limit.allowed(dense), 1e-30) for limit in self.limits)

    def check(self, model: CostModel, plan: Plan) -> None:
        """Assert that a plan meets the budget.

        Raises:
            BudgetError: it does not.
        """
        cost, dense = model.cost(plan), model.cost()
        if not self.holds(cost, dense):
            raise BudgetError(
                f"the plan does not meet the budget {self}",
                at=f"{cost}",
                so="it was refused",
                fix="this is a fault of the search; please report it",
            )


def parse_budget(text: str | Budget) -> Budget:
    """Read a budget.

    Raises:
        BudgetError: the text is not a budget.
    """
    if isinstance(text, Budget):
        return text
    limits = []
    for part in re.split(r"\s+and\s+|,", str(text).strip()):
        match = re.fullmatch(r"\s*(\w+)\s*(?:<=|<|=<|≤)\s*([0-9.]+(?:e[+-]?\d+)?)\s*(%|[a-z]*)\s*", part.lower())
        if match is None:
            raise BudgetError(f"cannot read the budget {text!r}", fix=_HOW)
        metric, number, unit = match.groups()
        if metric not in _METRICS:
            raise BudgetError(f"cannot budget {metric!r}", at=repr(text), fix=_HOW)
        try:
            value = float(number)
        except ValueError as error:
            raise BudgetError(f"cannot read the number {number!r}", at=repr(text), fix=_HOW) from error
        if unit == "%":
            if not 0 < value <= 100:
                raise BudgetError(f"{value:g}% is not a share of the dense cost", at=repr(text), fix="use a share above 0% and up to 100%")
            limits.append(Limit(metric, value / 100, relative=True))
        elif unit in _UNITS:
            limits.append(Limit(metric, value * _UNITS[unit], relative=False))
        else:
            raise BudgetError(f"unknown unit {unit!r}", at=repr(text), fix=f"use % or one of {', '.join(u for u in _UNITS if u)}")
    return Budget(tuple(limits))


def refuse_unreachable(budget: Budget, model: CostModel, least: Mapping[str, int]) -> None:
    """Refuse a budget that even the least widths do not meet.

    Raises:
        BudgetError: says the least reachable.
    """
    lowest, dense = model.cost(least), model.cost()
    for limit in budget.limits:
        reach = getattr(lowest, limit.metric)
        if reach > limit.allowed(dense) * (1 + 1e-9):
            share = reach / getattr(dense, limit.metric)
            raise BudgetError(
                f"the budget {limit} cannot be met",
                at=f"least reachable: {limit.metric} <= {100 * share:.4g}% ({reach:.6g}), with the least width in every prunable group",
                so="nothing was pruned",
                fix="raise the budget, allow more kinds of units, or look at what is pinned: print(ofx.group(program))",
            )

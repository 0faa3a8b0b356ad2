"""Budgets: `flops <= 50%`, `params(encoder) <= 3M`, `latency <= 60% @ onnxruntime:cpu`, several at once with `and`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from optin_fx.costs import METRICS, CostModel, Measure
from optin_fx.errors import BudgetError
from optin_fx.plan import Plan

_UNITS = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12, "kb": 1e3, "mb": 1e6, "gb": 1e9}
_TIMES = {"s": 1.0, "ms": 1e-3, "us": 1e-6}
LATENCY = "latency"
_HOW = (
    "write METRIC <= NUMBER, as in 'flops <= 50%', 'params <= 3M', 'flops(encoder) <= 40% and memory <= 20MB', "
    f"'latency <= 60% @ onnxruntime:cpu'; metrics: {', '.join(METRICS)}, {LATENCY}"
)
_PART = re.compile(
    r"\s*(?P<metric>\w+)\s*(?:\(\s*(?P<part>[^()]+?)\s*\))?\s*(?:<=|<|=<|≤)\s*(?P<number>[0-9.]+(?:[eE][+-]?\d+)?)\s*(?P<unit>%|[A-Za-z]*)"
    r"\s*(?:@\s*(?P<target>[\w:.-]+))?\s*"
)


@dataclass(frozen=True)
class Limit:
    """One inequality.

    Attributes:
        metric: what is counted (see `costs.METRICS`), or "latency".
        value: the bound, a share of the dense cost where `relative`, else in the metric's unit; seconds for latency.
        part: pattern of the module paths that count; empty for the whole program.
        target: engine that a latency is measured on.
    """

    metric: str
    value: float
    relative: bool
    part: str = ""
    target: str = ""

    def __str__(self) -> str:
        number = f"{100 * self.value:.6g}%" if self.relative else f"{self.value * 1e3:.6g}ms" if self.target else f"{self.value:.6g}"
        return f"{self.metric}{f'({self.part})' if self.part else ''} <= {number}{f' @ {self.target}' if self.target else ''}"


@dataclass(frozen=True)
class Budget:
    """Inequalities that must all hold."""

    limits: tuple[Limit, ...]

    def __str__(self) -> str:
        return " and ".join(map(str, self.limits))

    @property
    def targets(self) -> tuple[str, ...]:
        """Engines that latencies are limited on."""
        return tuple(dict.fromkeys(limit.target for limit in self.limits if limit.target))

    def bind(self, model: CostModel, latencies: Mapping[str, Measure] | None = None, counted: CostModel | None = None) -> Bound:
        """The budget as inequalities on a program's extents.

        Args:
            latencies: by target, seconds as a function of the extents (`latency_table.LatencyTable`).
            counted: the costs that must meet the limits, where that are others than the program's: those of `narrowing.narrow`. Shares and
                prices stay the program's.

        Raises:
            BudgetError: a part does not exist, or a latency has no table.
        """
        counted = counted or model
        return Bound(self, counted, tuple(_ceiling(limit, model, latencies or {}, counted) for limit in self.limits))


@dataclass(frozen=True)
class Ceiling:
    """A limit on a program: `measure(extents) <= allowed`.

    Attributes:
        dense: the dense program's cost, of which shares are shares. priced: the measure by which units are compared.
    """

    limit: Limit
    measure: Measure
    allowed: float
    dense: float
    priced: Measure


@dataclass(frozen=True)
class Bound:
    """A budget on a program; `model` has the costs that count."""

    budget: Budget
    model: CostModel
    ceilings: tuple[Ceiling, ...]

    def holds(self, kept: Mapping[str, object] | Plan) -> bool:
        """True if a plan, or counts per group, meets every limit (to one part in 10^9, for rounding)."""
        return self.tightness(self.model.extents(kept)) <= 1 + 1e-9

    def tightness(self, extents: Mapping[str, float]) -> float:
        """The largest ratio of a cost to its limit; at most one when the budget holds."""
        return max(c.measure(extents) / max(c.allowed, 1e-30) for c in self.ceilings)

    def share(self) -> float:
        """What the tightest limit leaves of the dense cost."""
        return min(c.allowed / max(c.dense, 1e-30) for c in self.ceilings)

    def price(self, name: str, extents: Mapping[str, float]) -> float:
        """What one more unit of a group costs, as a share of each limit, the largest of them."""
        return max(c.priced.derivative(name, extents) / max(c.allowed, 1e-30) for c in self.ceilings)

    def check(self, plan: Plan) -> None:
        """Assert that a plan meets the budget.

        Raises:
            BudgetError: it does not.
        """
        if not self.holds(plan):
            raise BudgetError(
                f"the plan does not meet the budget {self.budget}",
                at=f"{self.model.cost(plan)}",
                so="it was refused",
                fix="this is a fault of the search; please report it",
            )

    def refuse_unreachable(self, least: Mapping[str, int]) -> None:
        """Refuse a budget that even the least widths do not meet.

        Raises:
            BudgetError: says the least reachable.
        """
        lowest = self.model.extents(least)
        for c in self.ceilings:
            reach = c.measure(lowest)
            if reach > c.allowed * (1 + 1e-9):
                raise BudgetError(
                    f"the budget {c.limit} cannot be met",
                    at=f"least reachable: {c.limit.metric} <= {100 * reach / c.dense:.4g}% ({reach:.6g}), "
                    "with the least width in every prunable group",
                    so="nothing was pruned",
                    fix="raise the budget, allow more kinds of units, or look at what is pinned: print(ofx.group(program))",
                )


def parse_budget(text: str | Budget) -> Budget:
    """Read a budget.

    Raises:
        BudgetError: the text is not a budget.
    """
    if isinstance(text, Budget):
        return text
    return Budget(tuple(_limit(part, str(text)) for part in re.split(r"\s+and\s+|,", str(text).strip())))


def parse_family(text: str) -> tuple[Budget, ...]:
    """Read budgets of which one number takes several values: `flops <= 90,80,70%`. A plain budget is a family of one.

    Raises:
        BudgetError: the text is not a budget.
    """
    match = re.search(r"([0-9.eE+]+%?(?:\s*,\s*[0-9.eE+]+%?)+)\s*(%|[A-Za-z]*)", text)
    if match is None:
        return (parse_budget(text),)
    unit = match.group(2)
    numbers = [number.strip().removesuffix("%") for number in match.group(1).split(",")]
    unit = unit or ("%" if "%" in match.group(1) else "")
    return tuple(parse_budget(f"{text[: match.start()]}{number}{unit}{text[match.end() :]}") for number in numbers)


def _ceiling(limit: Limit, model: CostModel, latencies: Mapping[str, Measure], counted: CostModel) -> Ceiling:
    if limit.metric != LATENCY:
        measure, priced = (one.measure(limit.metric, limit.part) for one in (counted, model))
    elif limit.target in latencies:
        measure = priced = latencies[limit.target]
    else:
        raise BudgetError(
            f"the budget {limit} needs latencies measured on {limit.target}",
            so="no plan can be chosen by latency alone",
            fix="use ofx.prune or ofx.search, which measure; or pass latencies={target: table} from optin_fx.latency_table.build",
        )
    dense = priced(model.extents())
    return Ceiling(limit, measure, limit.value * dense if limit.relative else limit.value, dense, priced)


def _limit(text: str, whole: str) -> Limit:
    match = _PART.fullmatch(text)
    if match is None:
        raise BudgetError(f"cannot read the budget {whole!r}", fix=_HOW)
    metric, unit = match["metric"].lower(), match["unit"].lower()
    part, target = match["part"] or "", match["target"] or ""
    if metric not in (*METRICS, LATENCY):
        raise BudgetError(f"cannot budget {metric!r}", at=repr(whole), fix=_HOW)
    if bool(target) != (metric == LATENCY) or (part and target):
        raise BudgetError(
            f"{metric} needs the engine that it is measured on"
            if metric == LATENCY and not target
            else f"{metric} is not measured on an engine"
            if target and not part
            else "latency is measured on the whole program",
            at=repr(whole),
            fix=_HOW,
        )
    try:
        value = float(match["number"])
    except ValueError as error:
        raise BudgetError(f"cannot read the number {match['number']!r}", at=repr(whole), fix=_HOW) from error
    if unit == "%":
        if not 0 < value <= 100:
            raise BudgetError(f"{value:g}% is not a share of the dense cost", at=repr(whole), fix="use a share above 0% and up to 100%")
        return Limit(metric, value / 100, True, part, target)
    known = _TIMES if metric == LATENCY else _UNITS
    if unit not in known:
        raise BudgetError(f"unknown unit {unit!r}", at=repr(whole), fix=f"use % or one of {', '.join(u for u in known if u)}")
    return Limit(metric, value * known[unit], False, part, target)

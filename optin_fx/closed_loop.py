"""Budgets on latency: search over a measured table, measure what comes out, correct the table, until the measurement meets the budget."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace

from optin_fx.budget import Bound, Budget
from optin_fx.costs import cost_model
from optin_fx.errors import BudgetError
from optin_fx.latency import measure
from optin_fx.latency_table import LatencyTable, build
from optin_fx.narrowing import narrow
from optin_fx.pipeline import Pass, State
from optin_fx.plan import Plan
from optin_fx.program import Program
from optin_fx.rewriting import rewrite
from optin_fx.timing import Repeats

ROUNDS = 5
WITHIN = 0.03
"""A measured latency this share of the dense one above its limit, or below, still is on the limit."""


@dataclass(frozen=True)
class Round:
    """One search and its measurement, on one target.

    Attributes:
        target: canonical text.
        predicted, measured: share of the dense latency, by the table and by interleaved measurement.
        low, high: 95 % confidence interval of the measured share.
        limit: the share that is allowed.
        factor: the table's correction that the search was made with.
    """

    target: str
    predicted: float
    measured: float
    low: float
    high: float
    limit: float
    factor: float

    def __str__(self) -> str:
        shares = f"predicted {self.predicted:.1%}, measured {self.measured:.1%} [{self.low:.1%}, {self.high:.1%}]"
        return f"{self.target}: {shares} of dense, limit {self.limit:.1%} (factor {self.factor:.2f})"


def search_by_latency(
    state: State,
    searching: Pass,
    budget: Budget,
    *,
    tables: Mapping[str, LatencyTable] | None = None,
    rounds: int = ROUNDS,
    within: float = WITHIN,
    repeats: Repeats | None = None,
    on_round: Callable[[Round], None] | None = None,
) -> State:
    """A scored state with the plan whose measured latencies meet a budget, at most `within` (of dense) from it.

    Args:
        tables: by target; built if not given. repeats: of the measurements of whole programs.

    Raises:
        BudgetError: no round met the budget; the message lists them.
        LoweringError: a target cannot build, or cannot run here.
    """
    program = state.program
    tables = dict(tables or {target: build(program, target) for target in budget.targets})
    history: list[tuple[float, Plan, list[Round]]] = []
    for _ in range(rounds):
        bound = budget.bind(cost_model(program), tables)
        plan = searching.apply(replace(state, latencies=dict(tables))).plan
        assert plan is not None
        made = _measured(program, plan, bound, tables, repeats, narrowed=getattr(searching, "narrowed", False))
        for item in made:
            if on_round:
                on_round(item)
        worst = max(item.measured - item.limit for item in made)
        history.append((worst, plan, made))
        if -within <= worst <= 0:
            break
        extents = bound.model.extents(plan)
        tables = {item.target: tables[item.target].corrected(extents, item.measured) for item in made}
    meeting = [entry for entry in history if entry[0] <= 0] or [entry for entry in history if entry[0] <= within]
    report = [str(item) for _, _, made in history for item in made]
    if not meeting:
        raise BudgetError(
            f"no plan met {budget} in {rounds} rounds",
            at="; ".join(report),
            so="nothing was pruned",
            fix="raise the budget, allow more kinds of units, or measure on a quieter machine",
        )
    _, plan, made = min(meeting, key=lambda entry: abs(entry[0]))
    facts = {**plan.provenance, "rounds": report, "latency": [asdict(item) for item in made]}
    return replace(state, plan=replace(plan, provenance=facts), latencies=dict(tables))


def _measured(
    program: Program, plan: Plan, bound: Bound, tables: Mapping[str, LatencyTable], repeats: Repeats | None, *, narrowed: bool
) -> list[Round]:
    small, extents, found = rewrite(program, plan), bound.model.extents(plan), []
    small = narrow(small) if narrowed else small
    for ceiling in bound.ceilings:
        target = ceiling.limit.target
        if not target:
            continue
        ratio = measure({"dense": program, "small": small}, target=target, repeats=repeats).ratio("small")
        table = tables[target]
        share = ceiling.allowed / table.dense
        found.append(Round(target, table(extents) / table.dense, 1 / ratio.ratio, 1 / ratio.high, 1 / ratio.low, share, table.factor))
    return found

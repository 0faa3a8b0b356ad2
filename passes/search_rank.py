"""Search by a global ranking of score per cost, with exact costs."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatch

import torch

from optin_fx.budget import Budget, parse_budget, refuse_unreachable
from optin_fx.costs import CostModel, cost_model
from optin_fx.errors import BudgetError
from optin_fx.groups import Group, group
from optin_fx.pipeline import SearchPass
from optin_fx.plan import Plan, make_plan
from optin_fx.program import Program
from optin_fx.scores import Scores, check

INSIDE_HEADS = ("qk-dim", "v-dim", "head-dim", "rotary-pair")
"""Kinds that shrink every head of a layer at once. Off by default: engines run odd head widths slowly."""


@dataclass(frozen=True)
class SearchRank(SearchPass):
    """Keep the units of highest score per cost, globally, until the budget is spent.

    What a unit costs is the derivative of the exact cost polynomial at the current extents; ranking and costs are
    iterated until they agree, then left-over budget is filled unit by unit in the order of the ranking. Optimal for additive
    scores and linear costs up to one unit (a knapsack's greedy bound). The budget is asserted on the result.

    Attributes:
        budget: see `optin_fx.budget`.
        kinds: kinds of units to prune; empty means all but those inside heads (qk-dim, v-dim, head-dim, rotary-pair).
        freeze: patterns (fnmatch) of group names to leave whole.
        min_keep: least share of every group's units to keep (at least one unit; at 0, whole residual branches may go).
        balance: no group keeps less than this times the budget's share of the dense cost, where the budget can be met so; 0 is free
            choice. Single-unit scores are blind to what many units lose together. At 0.5, sentence embeddings at 50 % of the FLOPs
            came closer to the dense ones, and a classifier, whose last layers matter at one token only, lost accuracy.
        align: widths are multiples of this where the extent allows; 1 is free choice. Applies to groups of at least 4 x align units.
        rounds: at most so many iterations of ranking against cost.
    """

    budget: str = "flops <= 50%"
    kinds: tuple[str, ...] = ()
    freeze: tuple[str, ...] = ()
    min_keep: float = 0.05
    balance: float = 0.0
    align: int = 1
    rounds: int = 12

    def search(self, program: Program, scores: Scores) -> Plan:
        """See the class."""
        budget = parse_budget(self.budget)
        groups = group(program)
        check(scores, groups)
        chosen = [g for g in groups.free if self._may_prune(g)]
        if not chosen:
            raise BudgetError("no group may be pruned", so="no budget below 100% can be met", fix="allow more kinds, or freeze less")
        model = cost_model(program)
        least = {g.name: self._least(g, self.min_keep) for g in chosen}
        refuse_unreachable(budget, model, least)
        balanced = {g.name: self._least(g, max(self.min_keep, self.balance * self._share(budget, model))) for g in chosen}
        if budget.holds(model.cost(balanced), model.cost()):
            least = balanced
        order = {g.name: torch.argsort(scores[g.name], descending=True, stable=True) for g in chosen}
        ranked = {g.name: scores[g.name][order[g.name]].clamp_min(0) for g in chosen}
        counts = self._fill(budget, model, chosen, ranked, least, by_cost=scores.additive)
        kept = {name: order[name][:count].tolist() for name, count in counts.items()}
        cost = model.cost(kept)
        plan = make_plan(
            program,
            kept,
            predicted={"flops": cost.flops, "params": cost.params, "bytes": cost.bytes},
            provenance={"search": str(self), "score": scores.method, "budget": str(budget)},
        )
        budget.check(model, plan)
        return plan

    def _may_prune(self, g: Group) -> bool:
        if any(fnmatch(g.name, pattern) for pattern in self.freeze):
            return False
        return g.kind in self.kinds if self.kinds else g.kind not in INSIDE_HEADS

    def _share(self, budget: Budget, model: CostModel) -> float:
        """What the tightest limit leaves of the dense cost."""
        dense = model.cost()
        return min(limit.allowed(dense) / getattr(dense, limit.metric) for limit in budget.limits)

    def _least(self, g: Group, share: float) -> int:
        floor = max(0 if g.removable and share == 0 else 1, round(share * g.extent))
        step = self._step(g)
        return min(g.extent, -(-floor // step) * step)

    def _step(self, g: Group) -> int:
        return self.align if g.extent >= 4 * self.align else 1

    def _fill(
        self,
        budget: Budget,
        model: CostModel,
        chosen: list[Group],
        ranked: dict[str, torch.Tensor],
        least: dict[str, int],
        *,
        by_cost: bool,
    ) -> dict[str, int]:
        """Counts per group: the lowest threshold on score per cost that the budget allows, then single steps.

        Scores that are no losses (magnitude) are only comparable within a group, where the cost is the same: they are ranked as they are.
        """
        dense = model.cost()
        counts = {g.name: g.extent for g in chosen}
        if budget.holds(model.cost(counts), dense):
            return counts
        best: tuple[float, dict[str, int]] | None = None
        for _ in range(self.rounds):
            extents = model.extents(counts)
            price = {g.name: self._price(budget, model, g.name, extents) if by_cost else 1.0 for g in chosen}
            worth = {g.name: ranked[g.name] / max(price[g.name], 1e-30) for g in chosen}
            found = self._threshold(budget, model, chosen, worth, least)
            self._add_left_over(budget, model, chosen, worth, found)
            value = sum(float(ranked[g.name][: found[g.name]].sum()) for g in chosen)
            if best is None or value > best[0]:
                best = (value, found)
            if found == counts:
                break
            counts = found
        assert best is not None
        return best[1]

    def _price(self, budget: Budget, model: CostModel, name: str, extents: dict[str, float]) -> float:
        """What one unit costs, as a share of each limit, the largest of them."""
        dense, shares = model.cost(), []
        for limit in budget.limits:
            polynomial = {"flops": model.macs, "macs": model.macs, "params": model.params, "bytes": model.bytes}[limit.metric]
            factor = 2.0 if limit.metric == "flops" else 1.0
            shares.append(factor * polynomial.derivative(name, extents) / limit.allowed(dense))
        return max(shares)

    def _threshold(
        self, budget: Budget, model: CostModel, chosen: list[Group], worth: dict[str, torch.Tensor], least: dict[str, int]
    ) -> dict[str, int]:
        dense = model.cost()
        levels = torch.cat([worth[g.name] for g in chosen]).unique()

        def counts_at(level: float) -> dict[str, int]:
            found = {}
            for g in chosen:
                count = int((worth[g.name] >= level).sum())
                step = self._step(g)
                found[g.name] = min(g.extent, max(least[g.name], count // step * step if count < g.extent else count))
            return found

        low, high = 0, len(levels)  # counts at `high` meet the budget, at `low` perhaps not
        while low < high:
            middle = (low + high) // 2
            if budget.holds(model.cost(counts_at(float(levels[middle]))), dense):
                high = middle
            else:
                low = middle + 1
        return counts_at(float(levels[high])) if high < len(levels) else dict(least)

    def _add_left_over(
        self, budget: Budget, model: CostModel, chosen: list[Group], worth: dict[str, torch.Tensor], counts: dict[str, int]
    ) -> None:
        dense = model.cost()
        open_groups = {g.name: g for g in chosen if counts[g.name] < g.extent}
        while open_groups:
            name = max(open_groups, key=lambda n: float(worth[n][counts[n]]))
            step = min(self._step(open_groups[name]), open_groups[name].extent - counts[name])
            counts[name] += step
            if not budget.holds(model.cost(counts), dense):
                counts[name] -= step
                del open_groups[name]
            elif counts[name] >= open_groups[name].extent:
                del open_groups[name]

"""Pruning in steps: the budgets on the way, and what the units that are left are worth by then."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch

from optin_fx.budget import Budget, Limit
from optin_fx.costs import cost_model
from optin_fx.plan import Plan
from optin_fx.program import Program
from optin_fx.scores import Scores


def budget_at(budget: Budget, dense: Program, share: float) -> Budget:
    """The limits after a share of the way, as absolute costs of the dense program: the final share of each to that power."""
    limits: list[Limit] = []
    for ceiling in budget.bind(cost_model(dense)).ceilings:
        final = min(ceiling.allowed / max(ceiling.dense, 1e-30), 1.0)
        limits.append(replace(ceiling.limit, value=ceiling.dense * final**share, relative=False))
    return Budget(tuple(limits))


def scores_of_kept(before: Scores, plan: Plan, after: Mapping[str, torch.Tensor]) -> Scores:
    """Scores for the dense program after a plan was carried out: of the units that stay those of the smaller program, of the others 0.

    A group that the smaller program does not have so any more (a width of one is no group) keeps the scores that it had.

    Args:
        before: for the dense program.
        after: by the names of groups of the smaller program, `[kept units]` each.
    """
    values = dict(before.values)
    for name, units in plan.kept.items():
        again = after.get(name)
        index = torch.tensor(units, dtype=torch.long)
        kept = again.double() if again is not None and len(again) == len(units) else before[name][index]
        values[name] = torch.zeros_like(before[name]).index_copy(0, index, kept)
    return replace(before, values=values | {name: own.double() for name, own in after.items() if name in values and name not in plan.kept})

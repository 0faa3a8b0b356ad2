"""`PruneStep`: what is pruned and how, whatever form the program comes in. Its subclasses are callables of other toolchains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from optin_fx.api import prune, rewrite
from optin_fx.plan import Plan
from optin_fx.program import Program
from optin_fx.recipe import DEFAULT_SCORE


@dataclass(frozen=True)
class PruneStep:
    """Prune a program by a plan, or by a budget.

    Attributes:
        plan: units to keep, made for this program; then nothing but the data is read.
        budget: what may stay; see `optin_fx.budget`.
        data: calibration batches, called as the program is. With them units are scored by `trajectory-sketch` and what stays is refitted,
            as in `optin_fx.prune`; without them units are scored by `magnitude`, which is quick and knows little.
        score: another score, by name.
        search_options: of `optin_fx.search`: kinds, freeze, align, ...
    """

    plan: Plan | None = None
    budget: str = "flops <= 50%"
    data: Sequence[Any] | None = None
    score: str | None = None
    search_options: Mapping[str, Any] = field(default_factory=dict)

    def smaller(self, program: Program) -> tuple[Program, Plan]:
        """The program after the step, and the plan that it followed.

        Raises:
            OptinError: the plan belongs to another program, or the budget cannot be met.
        """
        if self.plan is not None:
            return rewrite(program, self.plan, self.data), self.plan
        score = self.score or ("magnitude" if self.data is None else DEFAULT_SCORE)
        compensate = self.data is not None
        result = prune(program, data=self.data, score=score, budget=self.budget, compensate=compensate, **self.search_options)
        return result.program, result.plan

"""Search in steps: part of the way is pruned and compensated, and what is left is scored again."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from optin_fx.budget import parse_budget
from optin_fx.data import Batch, batches_of, first_batches
from optin_fx.freeing import give_back
from optin_fx.passes.rewrite_reconstruct import RewriteReconstruct, find_compensation
from optin_fx.passes.search_rank import SearchRank
from optin_fx.pipeline import ScorePass, State, find_criterion
from optin_fx.plan import Plan
from optin_fx.program import Program
from optin_fx.reconstruction import reconstruct
from optin_fx.retrace import retrace
from optin_fx.scores import Scores
from optin_fx.stepwise import budget_at, scores_of_kept


@dataclass(frozen=True)
class SearchSteps(SearchRank):
    """`search-rank` in steps: on the way the plan is carried out and compensated, and the units that are left are scored again.

    Scores of single units say what each loses while all others are there. Of two neurons that do the same work either can go, not
    both; and what compensation has folded into a unit makes it worth more. Scores of the compensated smaller program know that. Only the
    plan is made in steps: `rewrite-reconstruct` then refits once, from the dense program and on all data, which `prune(steps=n)`, the
    other way to prune in steps, does n times.
    Cost: for every step but the last a compensation and a scoring on `looked_at` samples.

    Attributes:
        steps: number of steps; after step i of n each cost is at most its final share to the power i / n.
        criterion: what scores again; "" for the criterion of the scores at hand.
        compensate: the `rewrite-reconstruct` on the way; two candidate ridges are enough to score by.
        looked_at: on the way compensation and scores look at about so many samples (whole batches).
        budget, kinds, freeze, widths, min_keep, min_width, align, balance, discount, rounds: see `SearchRank`.
    """

    steps: int = 2
    criterion: str = ""
    compensate: str = "rewrite-reconstruct{ratios=(0.001, 0.1)}"
    looked_at: int = 256

    reads: ClassVar[tuple[str, ...]] = ("program", "scores", "data")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps < 1 or self.looked_at < 1:
            raise ValueError("steps and looked_at must be at least 1")
        if self.steps > 1 and parse_budget(self.budget).targets:
            raise ValueError("a budget on latency would have its table measured again in each step: use search-rank")

    def apply(self, state: State) -> State:
        """The plan after the last step.

        Raises:
            BudgetError: see `BudgetedSearch`.
            DataError: the data does not fit.
            PipelineError: `criterion` or `compensate` names no such pass.
        """
        assert state.scores is not None
        criterion, compensation = self._criterion(state.scores), find_compensation(self.compensate, f"{self.name()}, option compensate")
        batches = first_batches(batches_of(state.program, state.data, needed_for=self.name()), self.looked_at)
        scores = state.scores
        for step in range(1, self.steps):
            plan = self._planned(state, scores, step)
            scores = scores_of_kept(scores, plan, self._scored_again(state.program, plan, batches, criterion, compensation).values)
        return replace(state, plan=self._planned(state, scores, self.steps))

    def _planned(self, state: State, scores: Scores, step: int) -> Plan:
        """The plan at the budget of a step."""
        if step == self.steps:
            return self.plan(self.space(state.program, scores, state.latencies), scores)
        budget = budget_at(parse_budget(self.budget), state.program, step / self.steps)
        return replace(self, budget=budget).search(state.program, scores)

    def _scored_again(
        self, program: Program, plan: Plan, batches: list[Batch], criterion: ScorePass, compensation: RewriteReconstruct
    ) -> Scores:
        give_back(graphs=True)  # of the step before
        module, _ = reconstruct(program, plan, batches, compensation)
        scores = criterion.apply(State(retrace(module, program, provenance={}), batches)).scores
        assert scores is not None
        return scores

    def _criterion(self, scores: Scores) -> ScorePass:
        return find_criterion(self.criterion or scores.method, f"{self.name()}, option criterion")

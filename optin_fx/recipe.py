"""What `prune` does after tracing: one recipe of passes, run once, for a family of budgets, or in steps."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch

from optin_fx.budget import Budget, parse_budget
from optin_fx.data import Batch, batches_of
from optin_fx.errors import BudgetError, PipelineError, PlanError
from optin_fx.groups import group
from optin_fx.pipeline import Pass, Pipeline, State, find_pass
from optin_fx.plan import Plan, make_plan
from optin_fx.program import Program
from optin_fx.space import BudgetedSearch
from optin_fx.stepwise import budget_at

Callback = Callable[[Pass, State, float], None]

DEFAULT_SCORE = "trajectory-sketch{power=0.5, lam=100}"
"""Label-free, at about three forward passes. Samples count by the root of their totals, so that a few that the model is unsure of do not
choose the plan for all others; how it compares is in docs/results/quality.md and, under Samples, ablation.md."""

OWN_TRIAL = "trial{criteria=False}"
"""The search where a criterion was asked for by name: several ways of sharing out, and no other criterion in its place."""


@dataclass(frozen=True)
class Recipe:
    """The passes of one pruning run.

    Attributes:
        scoring, searching, rewriting: one each. rearranging: between searching and rewriting, or None.
        budget: the search's.
        narrowing: after the (last) rewriting, or None.
    """

    scoring: Pass
    searching: Pass
    rearranging: Pass | None
    rewriting: Pass
    budget: Budget
    narrowing: Pass | None = None

    def batches(self, program: Program, data: Iterable[Any] | torch.Tensor | None) -> list[Batch] | None:
        """Checked calibration batches; None where nothing needs them and none were given.

        Raises:
            DataError: they are missing, empty, or do not fit.
        """
        compensates = "data" in self.rewriting.reads
        if not (getattr(self.scoring, "needs_data", True) or compensates or data is not None):
            return None
        return batches_of(program, data, needed_for="pruning with compensation" if compensates else self.scoring.name())

    def within(self, budget: Budget) -> Recipe:
        """The same with another budget.

        Raises:
            BudgetError: the search has no option for it.
        """
        if not any(option.name == "budget" for option in fields(self.searching)):
            raise BudgetError(f"{self.searching.name()} has no option budget", so="it cannot prune in steps", fix="use one step")
        return replace(self, searching=replace(self.searching, budget=budget), budget=budget)  # type: ignore[call-arg]


def make_recipe(
    score: str | Pass,
    budget: str,
    search: str | Pass | None,
    rearrange: bool | str | Pass,
    compensate: bool | str | Pass,
    search_options: Mapping[str, Any],
    narrow: bool = True,
) -> Recipe:
    """The passes that the arguments of `prune` name.

    Raises:
        PipelineError, BudgetError: one of them cannot be read.
    """
    parsed = parse_budget(budget)
    rearranging = rearranging_pass(rearrange)
    scoring = scoring_pass(score, rearranging)
    rewriting = rewriting_pass(compensate)
    if search is None:
        trial = "trial" if scoring == find_pass(DEFAULT_SCORE, "score") else OWN_TRIAL
        search = trial if rewriting.name() == "rewrite-reconstruct" and not parsed.targets else "rank"
        if not {*search_options} <= {option.name for option in fields(find_pass(search, "search"))}:
            search = "rank"  # options that only this one has ask for it
    searching = searching_pass(search, narrow, budget=budget, **search_options)
    if isinstance(search, Pass):
        parsed = parse_budget(getattr(search, "budget", budget))
    return Recipe(scoring, searching, rearranging, rewriting, parsed, find_pass("narrow-rows") if narrow else None)


def rearranging_pass(rearrange: bool | str | Pass) -> Pass | None:
    """The pass that the argument `rearrange` of `prune` and `search` names, if any.

    Raises:
        PipelineError: there is none of that name.
    """
    return None if rearrange is False else find_pass("rearrange-fisher" if rearrange is True else rearrange, "rearrange")


def scoring_pass(score: str | Pass, rearranging: Pass | None = None) -> Pass:
    """The pass that the argument `score` of `prune` names; it keeps what an exchange of units needs, if there is to be one.

    Raises:
        PipelineError: there is none, or it cannot keep gradients of single samples.
    """
    return find_pass(score, "score", **({"keep_samples": True} if rearranging and not isinstance(score, Pass) else {}))


def searching_pass(search: str | Pass, narrow: bool, **search_options: Any) -> Pass:
    """The pass that the argument `search` of `prune` names, whose budget counts on narrowing if that is to come.

    Raises:
        PipelineError: there is none of that name, it has not such an option, or it counts on narrowing that is not to come.
    """
    found = find_pass(search, "search", **search_options)
    if not narrow and getattr(found, "narrowed", False):
        raise PipelineError(
            "the search counts on rows that are not computed, and narrowing is off",
            at=str(found),
            so="the smaller program would cost more than the budget",
            fix="leave narrow at True, or search with narrowed=False",
        )
    counts = narrow and isinstance(found, BudgetedSearch) and not isinstance(search, Pass)
    return replace(found, narrowed=True) if counts else found  # type: ignore[call-arg]


def rewriting_pass(compensate: bool | str | Pass) -> Pass:
    """The pass that the argument `compensate` of `prune` and `rewrite` names.

    Raises:
        PipelineError: there is none.
    """
    if isinstance(compensate, bool):
        compensate = "reconstruct" if compensate else "none"
    return find_pass("slice" if compensate == "none" else compensate, "rewrite")


def searched(state: State, searching: Pass, rearranging: Pass | None, budget: Budget, callbacks: Sequence[Callback] = ()) -> State:
    """A scored state with a plan, its units exchanged if that is wanted."""
    found = _searched(state, searching, budget, callbacks)
    return Pipeline((rearranging,), tuple(callbacks)).run(found) if rearranging else found


def _searched(state: State, searching: Pass, budget: Budget, callbacks: Sequence[Callback]) -> State:
    """A scored state with a plan. A budget on latency is searched for in a closed loop of measurements."""
    if not budget.targets:
        return Pipeline((searching,), tuple(callbacks)).run(state)
    from optin_fx.closed_loop import search_by_latency

    started = time.perf_counter()
    state = search_by_latency(state, searching, budget)
    seconds = time.perf_counter() - started
    state = replace(state, log=(*state.log, (str(searching), seconds)))
    for callback in callbacks:
        callback(searching, state, seconds)
    return state


def prune_scored(state: State, recipe: Recipe, callbacks: Sequence[Callback] = ()) -> State:
    """Search, rearrange and rewrite a scored state."""
    planned = searched(state, recipe.searching, recipe.rearranging, recipe.budget, callbacks)
    return Pipeline((recipe.rewriting,), tuple(callbacks)).run(planned)


def narrowed(state: State, recipe: Recipe, callbacks: Sequence[Callback] = ()) -> State:
    """A rewritten state whose smaller program computes no rows that nothing reads, if the recipe says so."""
    return Pipeline((recipe.narrowing,), tuple(callbacks)).run(state) if recipe.narrowing else state


def prune_in_steps(state: State, recipe: Recipe, steps: int = 1, callbacks: Sequence[Callback] = ()) -> State:
    """Run a recipe in steps: each scores, prunes and compensates what the last one left.

    After step i of n each cost is at most the dense one times its final share to the power i / n. The returned state holds one
    plan, for the dense program, and the last step's scores.

    Raises:
        BudgetError: `steps` is below one.
    """
    if steps < 1:
        raise BudgetError(f"cannot prune in {steps} steps", fix="steps is at least 1")
    if steps > 1 and recipe.budget.targets:
        raise BudgetError(f"{recipe.budget} in {steps} steps", so="each step would measure a table of its own", fix="use one step")
    dense, plan, log = state.program, None, state.log
    for step in range(1, steps + 1):
        own = recipe if steps == 1 else recipe.within(budget_at(recipe.budget, dense, step / steps))
        scored = Pipeline((own.scoring,), tuple(callbacks)).run(replace(state, log=()))
        done = prune_scored(scored, own, callbacks)
        assert done.plan is not None
        assert done.small is not None
        plan = done.plan if plan is None else _composed(dense, plan, done.plan)
        log = (*log, *done.log)
        state = State(done.small, state.data)
    return replace(done, program=dense, plan=plan, log=log)


def _composed(dense: Program, first: Plan, second: Plan) -> Plan:
    """Two plans, the second for what the first one left, as one."""
    extents = {g.name: g.extent for g in group(dense).free}
    kept = {name: tuple(first.kept.get(name, range(extent))) for name, extent in extents.items()}
    for name, units in second.kept.items():
        if name not in kept or len(kept[name]) != second.extents[name]:
            raise PlanError(
                f"the smaller program names a group {name!r} that the dense one does not have so",
                so="the two steps cannot be told as one plan",
                fix="prune in one step; and please report it",
            )
        kept[name] = tuple(kept[name][unit] for unit in units)
    return make_plan(dense, kept, predicted=dict(second.predicted), provenance=dict(second.provenance))

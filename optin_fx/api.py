"""The stages as functions: trace, group, score, search, rewrite, lower, measure, and `prune`, which runs them all."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram

import optin_fx.passes  # noqa: F401  registers the passes
from optin_fx.budget import parse_budget, parse_family
from optin_fx.costs import Cost, cost
from optin_fx.data import Batch, batches_of
from optin_fx.narrowing import narrow as narrow_program
from optin_fx.pipeline import Pass, Pipeline, State, find_pass
from optin_fx.plan import Plan
from optin_fx.program import Program, trace
from optin_fx.recipe import (
    DEFAULT_SCORE,
    Callback,
    Recipe,
    make_recipe,
    narrowed,
    prune_in_steps,
    prune_scored,
    rearranging_pass,
    rewriting_pass,
    searched,
)
from optin_fx.scores import Scores
from optin_fx.verifying import Agreement, verify
from optin_fx.writeback import WriteBack, apply_to


@dataclass(frozen=True)
class Summary:
    """What a pruning run did, in numbers that were computed or measured in it.

    Attributes:
        before, after: costs of the dense and the smaller program at the example inputs' sizes.
        agreement: the oracle: the sliced program against the masked one, before any compensation.
        stages: (pass, seconds) in order.
    """

    before: Cost
    after: Cost
    agreement: Agreement
    stages: tuple[tuple[str, float], ...]

    def __str__(self) -> str:
        share = lambda name: 100 * getattr(self.after, name) / max(getattr(self.before, name), 1)  # noqa: E731
        lines = [
            f"before   {self.before}",
            f"after    {self.after}",
            f"kept     {share('flops'):.1f}% of FLOPs, {share('params'):.1f}% of parameters, {share('bytes'):.1f}% of bytes",
            f"sliced against masked: {self.agreement}",
        ]
        return "\n".join(lines + [f"{seconds:8.2f} s  {name}" for name, seconds in self.stages])


@dataclass(frozen=True)
class Pruned:
    """Result of `prune`.

    Attributes:
        program: the smaller program. dense: the one it was made from.
        plan, scores: what was kept, and why.
        report: see `Summary`.
        all_rows: the smaller program with the rows that nothing reads, which the user's module computes; `program` where there are none.
    """

    program: Program
    dense: Program
    plan: Plan
    scores: Scores
    report: Summary
    all_rows: Program

    def module(self) -> nn.Module:
        """The smaller program as a trainable module."""
        return self.program.module()

    def apply_to(self, model: nn.Module) -> WriteBack:
        """Cut the eager module that was pruned, in place, to what the smaller program computes; see `optin_fx.writeback.apply_to`."""
        return apply_to(model, self.dense, self.plan, self.all_rows)


def score(program: Program, method: str | Pass = DEFAULT_SCORE, data: Iterable[Any] | torch.Tensor | None = None, **options: Any) -> Scores:
    """Score every unit of every prunable group.

    Args:
        method: a scoring pass or its text form, with or without the prefix: "fisher", "trajectory-sketch{probes=2}". By default that of
            `prune`.
        data: iterable of example inputs (tensor, tuple, dict or `Batch`); not needed by `magnitude` and `random`.

    Raises:
        PipelineError: no such pass or option.
        DataError: the data is missing, empty, or does not fit.
        ScoreError: scores are not finite.
    """
    step = find_pass(method, "score", **options)
    scores = Pipeline((step,)).run(State(program, _batches(program, data, step))).scores
    assert scores is not None
    return scores


def search(
    program: Program,
    scores: Scores,
    budget: str = "flops <= 50%",
    method: str | Pass = "rank",
    data: Iterable[Any] | torch.Tensor | None = None,
    rearrange: bool | str | Pass = False,
    **options: Any,
) -> Plan:
    """The plan that keeps most score within a budget.

    Args:
        budget: "flops <= 50%", "params <= 3M", several joined by "and"; see `optin_fx.budget`. One on latency is met by measurement, which
            takes minutes.
        method: a search pass or its text form: "rank", "kwon", "knapsack"; "steps" and "trial" need data, and "trial" is what `prune` does.
        data: calibration batches, for a search that looks at outputs.
        rearrange: then exchange units within groups by their joint loss (`rearrange-fisher`); for scores of `fisher{keep_samples=True}`.
        options: options of the pass: kinds, freeze, min_keep, align, ...

    Raises:
        BudgetError: it cannot be read or met; the message says the least that can be reached.
        ScoreError: the scores are not finite, belong to another model, or have no gradients of single samples to rearrange by.
        DataError: the search needs data, and there is none, or it does not fit.
    """
    step = (
        find_pass(method, "search", **options) if isinstance(method, Pass) else find_pass(method, "search", budget=str(budget), **options)
    )
    state = State(program, _batches(program, data, step), scores)
    plan = searched(state, step, rearranging_pass(rearrange), parse_budget(getattr(step, "budget", budget))).plan
    assert plan is not None
    return plan


def rewrite(
    program: Program,
    plan: Plan,
    data: Iterable[Any] | torch.Tensor | None = None,
    compensate: bool | str | Pass | None = None,
) -> Program:
    """Remove the units that a plan does not keep: every tensor is sliced, every written size derived again, and the graph traced again.

    The result is physically smaller, trainable, saveable and exportable; the program passed in is unchanged. Without data the weights
    that stay are those of the dense program. With data they are refitted, so that they make up for what went, as `prune` does it.
    A plan that counts on `ofx.narrow`, as those of `prune` do, has its result narrowed.

    Args:
        data: calibration batches without labels.
        compensate: "reconstruct", "tune", "none" or a rewriting pass, see `prune`; without, "reconstruct" if there is data.

    Raises:
        PlanError: the plan does not fit the program.
        DataError: the compensation needs data, and there is none, or it does not fit.
        PipelineError: there is no such compensation.
    """
    step = rewriting_pass(data is not None if compensate is None else compensate)
    small = Pipeline((step,)).run(State(program, _batches(program, data, step), plan=plan)).small
    assert small is not None
    return narrow_program(small) if plan.provenance.get("narrowed") else small


def _batches(program: Program, data: Iterable[Any] | torch.Tensor | None, step: Pass) -> list[Batch] | None:
    """Checked batches, where there are any or a pass needs them."""
    return batches_of(program, data, needed_for=step.name()) if data is not None or "data" in step.reads else None


def prune(
    model: nn.Module | ExportedProgram | Program,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    dynamic_shapes: Any = None,
    *,
    data: Iterable[Any] | torch.Tensor | None = None,
    score: str | Pass = DEFAULT_SCORE,
    budget: str = "flops <= 50%",
    search: str | Pass | None = None,
    rearrange: bool | str | Pass = False,
    compensate: bool | str | Pass = "reconstruct",
    steps: int = 1,
    narrow: bool = True,
    on_progress: Callback | None = None,
    **search_options: Any,
) -> Pruned:
    """Trace, group, score, search and rewrite in one call; the result is physically smaller and verified.

    Args:
        model, args, kwargs, dynamic_shapes: as for `trace`. The model is not changed.
        data: calibration batches without labels; needed by most scores and by compensation.
        score, search: passes or their text forms: "fisher", "trajectory-sketch{probes=2}"; "rank", "kwon", "knapsack", "steps", "trial".
            Without a search it is "trial" (several ways are tried, and compared with the dense program; other criteria only where the
            score is the default one) where `compensate` is "reconstruct", else, for budgets on latency, and with options that only it
            has, "rank".
        budget: see `search`.
        rearrange: exchange units within groups by their joint loss (`rearrange-fisher`); gradients of single samples are kept for it.
        compensate: how what stays makes up for what went: "reconstruct" refits the weights of every consumer, "tune" gives each unit one
            factor, "none" (or False) slices only; or a rewriting pass. All but "none" need data.
        steps: prune in so many steps, scoring again in each what the last one left; shares of the dense cost fall geometrically.
        narrow: compute no rows that nothing reads (`ofx.narrow`): exact, and where a classifier reads one token of the last layer, that
            layer's work for the other tokens is a part of the budget that costs no accuracy.
        on_progress: called after every pass with (pass, state, seconds).
        search_options: kinds, freeze, min_keep, align, ...

    Raises:
        OptinError: one of its kinds; before any work is done where the input allows it to be seen.
    """
    recipe = make_recipe(score, budget, search, rearrange, compensate, search_options, narrow)
    program, callbacks = trace(model, args, kwargs, dynamic_shapes), (on_progress,) if on_progress else ()
    done = prune_in_steps(State(program, recipe.batches(program, data)), recipe, steps, callbacks)
    return _pruned(done, recipe, callbacks)


def prune_family(
    model: nn.Module | ExportedProgram | Program,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    dynamic_shapes: Any = None,
    *,
    data: Iterable[Any] | torch.Tensor | None = None,
    score: str | Pass = DEFAULT_SCORE,
    budget: str = "flops <= 90,80,70,60,50%",
    search: str | Pass | None = None,
    rearrange: bool | str | Pass = False,
    compensate: bool | str | Pass = "reconstruct",
    narrow: bool = True,
    on_progress: Callback | None = None,
    **search_options: Any,
) -> tuple[Pruned, ...]:
    """Prune to several budgets after scoring once: the members from the loosest to the tightest, as the budget lists them.

    Args:
        budget: one budget of which one number takes several values: "flops <= 90,80,50% and params <= 70%".
        model, args, kwargs, dynamic_shapes, data, score, search, rearrange, compensate, narrow, on_progress, search_options: as for
            `prune`.

    Raises:
        OptinError: one of its kinds.
    """
    budgets = parse_family(budget)
    recipes = [make_recipe(score, str(b), search, rearrange, compensate, search_options, narrow) for b in budgets]
    program = trace(model, args, kwargs, dynamic_shapes)
    state = State(program, recipes[0].batches(program, data))
    callbacks = (on_progress,) if on_progress else ()
    scored = Pipeline((recipes[0].scoring,), callbacks).run(state)
    return tuple(_pruned(prune_scored(scored, recipe, callbacks), recipe, callbacks) for recipe in recipes)


def _pruned(state: State, recipe: Recipe, callbacks: Sequence[Callback]) -> Pruned:
    """The verified result of a rewritten state."""
    all_rows, state = state.small, narrowed(state, recipe, callbacks)
    assert all_rows is not None
    assert state.plan is not None
    assert state.scores is not None
    assert state.small is not None
    agreement = verify(state.program, state.plan, strict=True)
    small = replace_provenance(state.small, state.plan)
    summary = Summary(cost(state.program), cost(small), agreement, state.log)
    return Pruned(small, state.program, state.plan, state.scores, summary, all_rows)


def replace_provenance(program: Program, plan: Plan) -> Program:
    """Note in a program which plan made it."""
    program.provenance.update({"kept": {name: len(units) for name, units in plan.kept.items()}})
    return program


__all__ = ["Pruned", "Summary", "prune", "prune_family", "rewrite", "score", "search"]

"""Several ways of sharing the budget among groups, tried out: the one that stays closest to the dense program wins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import ClassVar

import torch
from torch import fx

from optin_fx.data import Batch, batches_of, first_samples, held_out, rows
from optin_fx.errors import PipelineError
from optin_fx.interpreter import Runner, flat_inputs
from optin_fx.outputs import output_terms
from optin_fx.passes.rewrite_reconstruct import RewriteReconstruct
from optin_fx.passes.search_rank import SearchRank
from optin_fx.pipeline import State, find_pass
from optin_fx.plan import Plan
from optin_fx.program import Program
from optin_fx.reconstruction import reconstruct
from optin_fx.space import BudgetedSearch


@dataclass(frozen=True)
class SearchTrial(BudgetedSearch):
    """`search-rank` with several options; each plan is compensated, and that of least divergence from the dense outputs is kept.

    How much a loss early in a network counts depends on how much of it the refits behind can make up for, and what single scores
    miss of joint losses depends on the network, too. No rule was best on every task (docs/plans.md), but which one is can be seen without
    labels: every plan is sliced and refitted on a part of the calibration data, and the outputs are compared with the dense program's on
    the rest (`optin_fx.outputs`: KL of logits, change of direction of features). Cost: a compensation on `samples` for each distinct plan.

    Attributes:
        tries: options of `search-rank`, one text for each try; "" for the defaults.
        compensate: the `rewrite-reconstruct` to try with.
        samples: the first so many samples are used; a quarter of them compares.
        budget, kinds, freeze, widths, min_keep, min_width, align: see `BudgetedSearch`.
    """

    tries: tuple[str, ...] = ("", "discount=0.75", "discount=1", "balance=0.5")
    compensate: str = "rewrite-reconstruct"
    samples: int = 256

    reads: ClassVar[tuple[str, ...]] = ("program", "scores", "data")

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "tries", (self.tries,) if isinstance(self.tries, str) else tuple(self.tries))
        if not self.tries:
            raise ValueError("tries names at least one way")

    def apply(self, state: State) -> State:
        """The best plan; losses of all are in its provenance.

        Raises:
            BudgetError: see `BudgetedSearch`.
            DataError: the data does not fit.
        """
        compensation = find_pass(self.compensate, "rewrite")
        if not isinstance(compensation, RewriteReconstruct):
            raise PipelineError(f"{self.compensate!r} does not compensate", at="search-trial, option compensate", fix="rewrite-reconstruct")
        found: dict[str, Plan] = {text: plan for text in self.tries if (plan := self._searching(text).apply(state).plan) is not None}
        distinct = {tuple(plan.kept.items()): text for text, plan in reversed(found.items())}
        losses = dict.fromkeys(distinct.values(), 0.0)
        if len(losses) > 1:
            batches = batches_of(state.program, state.data, needed_for=self.name())
            batches = first_samples(batches, min(self.samples, sum(map(rows, batches))), needed_for=self.name())
            seen, unseen = held_out(state.program, batches, max(1, sum(map(rows, batches)) // 4))
            losses = {text: _loss(state.program, found[text], compensation, seen, unseen) for text in losses}
        best = min(losses, key=lambda text: losses[text])
        facts = {**found[best].provenance, "search": str(self), "tries": {text or "defaults": loss for text, loss in losses.items()}}
        return replace(state, plan=replace(found[best], provenance=facts))

    def _searching(self, text: str) -> SearchRank:
        own = {option.name: getattr(self, option.name) for option in fields(BudgetedSearch)}
        step = find_pass(f"search-rank{{{text}}}", "search", **own)
        assert isinstance(step, SearchRank)
        return step


def _loss(program: Program, plan: Plan, compensation: RewriteReconstruct, seen: Sequence[Batch], unseen: Sequence[Batch]) -> float:
    """Mean divergence of a sample's outputs after compensation on other samples."""
    small, _ = reconstruct(program, plan, seen, compensation)
    total = torch.zeros((), dtype=torch.float64)
    with torch.no_grad():
        for batch in unseen:
            before = Runner(program)(batch)
            after = fx.Interpreter(small).run(*flat_inputs(program, batch), enable_io_processing=False)
            for term in output_terms(program):
                total += term.divergence(after[term.index] - before[term.index], before[term.index]).double().sum().cpu()
    loss = float(total) / sum(map(rows, unseen))
    return loss if loss == loss else float("inf")

"""Several ways of sharing the budget among groups, tried out: the one that stays closest to the dense program wins."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import ClassVar

import torch
from torch import fx

from optin_fx.data import batches_of, parted, rows
from optin_fx.errors import PipelineError
from optin_fx.interpreter import Runner, flat_inputs
from optin_fx.outputs import divergence, output_terms
from optin_fx.passes.rewrite_reconstruct import RewriteReconstruct
from optin_fx.passes.search_rank import SearchRank
from optin_fx.pipeline import State, find_pass
from optin_fx.plan import Plan
from optin_fx.reconstruction import reconstruct
from optin_fx.space import BudgetedSearch


@dataclass(frozen=True)
class SearchTrial(BudgetedSearch):
    """`search-rank` with several options; each plan is compensated, and the one that comes closest to the dense outputs is kept.

    How much a loss early in a network counts depends on how much of it the refits behind can make up for, and what single scores
    miss of joint losses depends on the network, too. No rule was best on every task (docs/plans.md), but which one is can be seen without
    labels: every plan is sliced and refitted on a part of the calibration data, and the outputs are compared with the dense program's on
    the rest (`optin_fx.outputs`: KL of logits, change of direction of features). The first way stays unless another is surely better:
    noise should not decide, and calibration data that is less varied than what the model will see (views of a few photographs) hides
    differences. Cost: a compensation on `samples` for each distinct plan.

    Attributes:
        tries: options of `search-rank`, one text for each try; "" for the defaults.
        sure: by how many standard errors of the paired difference a later try must be better than the first.
        compensate: the `rewrite-reconstruct` to try with.
        samples: the tries are compensated on so many samples (whole batches), at most half of all; the others compare them.
        budget, kinds, freeze, widths, min_keep, min_width, align: see `BudgetedSearch`.
    """

    tries: tuple[str, ...] = ("discount=0.75", "", "discount=1", "balance=0.5")
    sure: float = 2.0
    compensate: str = "rewrite-reconstruct"
    samples: int = 192

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
        plans: dict[str, Plan] = {}
        for text in self.tries:
            plan = self._searching(text).apply(state).plan
            assert plan is not None
            if not any(plan.kept == other.kept for other in plans.values()):
                plans[text] = plan
        losses = self._losses(state, plans, compensation) if len(plans) > 1 else {}
        best = chosen(losses, self.sure) if losses else self.tries[0]
        means = {text or "defaults": float(loss.mean()) for text, loss in losses.items()}
        facts = {**plans[best].provenance, "search": str(self), "tries": means, "tried": best or "defaults"}
        return replace(state, plan=replace(plans[best], provenance=facts))

    def _losses(self, state: State, plans: Mapping[str, Plan], compensation: RewriteReconstruct) -> dict[str, torch.Tensor]:
        """Divergence of each sample's outputs after compensation on other samples, `[samples]` float64."""
        program, terms = state.program, output_terms(state.program)
        batches = batches_of(program, state.data, needed_for=self.name())
        seen, unseen = parted(program, batches, min(self.samples, sum(map(rows, batches)) // 2))
        with torch.no_grad():
            dense = [Runner(program)(batch) for batch in unseen]
        losses = {}
        for text, plan in plans.items():
            small, _ = reconstruct(program, plan, seen, compensation)
            with torch.no_grad():
                found = [
                    divergence(terms, fx.Interpreter(small).run(*flat_inputs(program, batch), enable_io_processing=False), before).cpu()
                    for batch, before in zip(unseen, dense, strict=True)
                ]
            losses[text] = torch.cat(found).nan_to_num(nan=1e30, posinf=1e30)
        return losses

    def _searching(self, text: str) -> SearchRank:
        own = {option.name: getattr(self, option.name) for option in fields(BudgetedSearch)}
        step = find_pass(f"search-rank{{{text}}}", "search", **own)
        assert isinstance(step, SearchRank)
        return step


def chosen(losses: Mapping[str, torch.Tensor], sure: float) -> str:
    """The name of least mean loss among the first and those that are surely better than it.

    Args:
        losses: by name, of the same samples, `[samples]`.
        sure: in standard errors of the mean paired difference.
    """
    first = next(iter(losses))
    rivals = {first: float(losses[first].mean())}
    for name, loss in losses.items():
        gain = losses[first] - loss
        error = float(gain.std()) / len(gain) ** 0.5 if len(gain) > 1 else 0.0
        if float(gain.mean()) > sure * error:
            rivals[name] = float(loss.mean())
    return min(rivals, key=lambda name: rivals[name])

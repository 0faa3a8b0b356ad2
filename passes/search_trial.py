"""Several ways of sharing the budget among groups, tried out: the one that stays closest to the dense program wins."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar

import torch
from torch import fx

from optin_fx.annotation import annotate
from optin_fx.data import Batch, batches_of, first_batches, parted, rows
from optin_fx.freeing import empty, give_back
from optin_fx.groups import group
from optin_fx.interpreter import Runner, flat_inputs
from optin_fx.outputs import Coverage, divergence, output_terms
from optin_fx.passes.rewrite_reconstruct import RewriteReconstruct, find_compensation
from optin_fx.passes.search_rank import SearchRank
from optin_fx.pipeline import ScorePass, State, as_tuples, find_criterion, find_pass, registered_passes, split_at
from optin_fx.plan import Plan
from optin_fx.program import Program
from optin_fx.reconstruction import reconstruct, room
from optin_fx.scores import Scores
from optin_fx.shelf import Shelf
from optin_fx.space import BudgetedSearch

_CRITERION = re.compile(r"\s*[\w-]+(\{.*\})?\s*")
"""A criterion with or without options."""

_WITHIN = re.compile(r"\bwithin\s*=")
"""In the options of a criterion: it says what it builds on."""

ENOUGH = 0.5
"""Of what independent samples would reach of a model's classes, the part from which on calibration data show what plans differ in."""

_STEPS = re.compile(r"\bsteps\s*=")
"""In the options of a try: it is made in steps."""


@dataclass(frozen=True)
class SearchTrial(BudgetedSearch):
    """`search-rank` with several options and criteria: each plan is compensated, and what comes closest to the dense outputs is kept.

    How much a loss early in a network counts depends on how much of it the refits behind can make up for, and what single scores
    miss of joint losses depends on the network, too. No rule was best on every task (docs/plans.md), but which one is can be seen without
    labels: every plan is sliced and refitted on a part of the calibration data, and the outputs are compared with the dense program's on
    the rest. The least loss wins. But data that reach few of the classes (views of a few photographs) do not show what the last layers are
    for: there, one more way is tried, which cuts these least, and it stays unless another is clearly better.
    Cost: a compensation on `samples` for each distinct plan, and for each criterion a scoring of these samples.

    Compared are means of the square root of a sample's divergence (`optin_fx.outputs`: KL of logits, change of direction of features).
    Near the dense outputs divergences are squares of what moved; some samples near a decision move a thousand times more than the
    others, and would alone decide between means of the squares.

    Attributes:
        tries: one text for each try, `options` of `search-rank` for the scores at hand ("" for its defaults), or `criterion: options` for
            another criterion's, scored on the part that is compensated on; one that builds on a criterion (an option `within`) builds on
            the scores at hand, unless its text names another; one that can leave kinds of groups out (`kinds`) leaves out what the search
            does not prune.
        cautious: the try that is made, and first, where the data reach less than half of the classes that independent samples would
            (`optin_fx.outputs.Coverage`); empty for none.
        criteria: whether other criteria are tried; without, their tries are made with the scores at hand.
        sure: by how many standard errors of the paired difference another try must be better than the cautious one.
        margin: by what share of its loss it must be better, too. Samples that are much alike make differences sure that others do not bear
            out: of up to 22 % on photographs (docs/plans.md).
        compensate: the `rewrite-reconstruct` to try with; two candidate ridges are enough to compare plans.
        samples: the tries are compensated on so many samples (whole batches), at most half of all, and compared on the next ones, at
            most twice as many.
        budget, kinds, freeze, widths, min_keep, min_width, align: see `BudgetedSearch`.
    """

    tries: tuple[str, ...] = ("", "balance=0.5", "reconstruction:")
    sure: float = 1.0
    margin: float = 0.33
    compensate: str = "rewrite-reconstruct{ratios=(0.001, 0.1)}"
    samples: int = 128
    criteria: bool = True
    cautious: str = "discount=1"

    reads: ClassVar[tuple[str, ...]] = ("program", "scores", "data")

    def __post_init__(self) -> None:
        super().__post_init__()
        as_tuples(self, "tries")
        if not self.tries:
            raise ValueError("tries names at least one way")

    def apply(self, state: State) -> State:
        """The best plan; losses of all are in its provenance.

        Raises:
            BudgetError: see `BudgetedSearch`.
            DataError: the data does not fit.
            PipelineError: a try names no criterion or option that there is.
        """
        compensation = find_compensation(self.compensate, "search-trial, option compensate")
        batches = batches_of(state.program, state.data, needed_for=self.name())
        seen, unseen = parted(state.program, batches, min(self.samples, sum(map(rows, batches)) // 2))
        unseen = first_batches(unseen, 2 * self.samples)
        facts: dict[str, Any] = {"search": str(self), "tries": {}}
        with closing(Shelf(room(state.program) // 2)) as dense:
            facts["coverage"] = reached = self._reached(state.program, unseen, dense)
            careful = bool(self.cautious) and reached < ENOUGH
            plans = self._plans(state, seen, (self.cautious, *self.tries) if careful else self.tries)
            best = next(iter(plans))
            if len(plans) > 1:
                losses = self._losses(state.program, plans, compensation, seen, unseen, dense)
                means = {name: float(loss.mean()) for name, loss in losses.items()}
                best = chosen(losses, self.sure, self.margin) if careful else min(means, key=lambda name: means[name])
                facts["tries"] = means
        facts = {**plans[best].provenance, **facts, "tried": best}
        return replace(state, plan=replace(plans[best], provenance=facts))

    def _reached(self, program: Program, unseen: Sequence[Batch], dense: Shelf) -> float:
        """How much of the model's classes the unseen data reach; their dense outputs are put away."""
        found = Coverage(output_terms(program))
        for number, batch in enumerate(unseen):
            with torch.no_grad():
                outputs = Runner(program)(batch)
            found.add(outputs)
            dense.put(number, outputs)
        return found.value

    def _plans(self, state: State, seen: Sequence[Batch], tries: Sequence[str]) -> dict[str, Plan]:
        """The distinct plans by the names of the tries that came to them first."""
        assert state.scores is not None
        tries = tuple(dict.fromkeys(tries if self.criteria else (_named(text)[1] for text in tries)))
        steps = [self._parsed(text, state.program, state.scores) for text in tries]
        scored: dict[ScorePass | None, State] = {None: state}
        plans: dict[str, Plan] = {}
        for text, (criterion, searching) in zip(tries, steps, strict=True):
            if criterion is not None and criterion not in scored:
                scored[criterion] = criterion.apply(replace(state, data=seen))
            plan = searching.apply(replace(scored[criterion], data=seen)).plan
            assert plan is not None
            if not any(plan.kept == other.kept for other in plans.values()):
                plans[text or "defaults"] = plan
        if len(scored) > 1:
            annotate(state.program, state.scores)  # other criteria have left theirs on the nodes
        return plans

    def _losses(
        self,
        program: Program,
        plans: Mapping[str, Plan],
        compensation: RewriteReconstruct,
        seen: Sequence[Batch],
        unseen: Sequence[Batch],
        dense: Shelf,
    ) -> dict[str, torch.Tensor]:
        """Root of the divergence of each unseen sample's outputs after compensation on the seen ones, `[samples]` float64."""
        terms, losses = output_terms(program), {}
        for name, plan in plans.items():
            small, _ = reconstruct(program, plan, seen, compensation)
            found = []
            with torch.no_grad():
                for number, batch in enumerate(unseen):
                    outputs = fx.Interpreter(small).run(*flat_inputs(program, batch), enable_io_processing=False)
                    found.append(divergence(terms, outputs, dense.look(number)).cpu())
            empty(small, program.graph_module)
            give_back()
            losses[name] = torch.cat(found).nan_to_num(nan=1e30, posinf=1e30).clamp_min(0.0).sqrt()
        return losses

    def _parsed(self, text: str, program: Program, scores: Scores) -> tuple[ScorePass | None, SearchRank]:
        """The criterion of a try, None for the scores at hand, and its search."""
        criterion, options = _named(text)
        own = {option.name: getattr(self, option.name) for option in fields(BudgetedSearch)}
        step = find_pass(f"search-{'steps' if _STEPS.search(options) else 'rank'}{{{options}}}", "search", **own)
        assert isinstance(step, SearchRank)
        return None if criterion is None else self._criterion(criterion, program, scores), step

    def _criterion(self, text: str, program: Program, scores: Scores) -> ScorePass:
        found = find_criterion(text, f"{self.name()}, option tries")
        options = {option.name for option in fields(found)}
        if "kinds" in options and not found.kinds:  # type: ignore[attr-defined]
            kinds = sorted({g.kind for g in group(program).free if self.may_prune(g)})
            found = replace(found, kinds=tuple(kinds))  # type: ignore[call-arg]
        own = scores.method.partition("{")[0]
        # scores that no pass made that is known here (a file, values of the user's) cannot be built on
        if "within" in options and not _WITHIN.search(text) and scores.additive and own != found.name() and own in registered_passes():
            found = replace(found, within=scores.method)  # type: ignore[call-arg]
        return found


def _named(text: str) -> tuple[str | None, str]:
    """The criterion of a try, None where it names none, and its options of the search."""
    first, *rest = split_at(text, ":")
    return (first.strip(), rest[0].strip()) if len(rest) == 1 and _CRITERION.fullmatch(first) else (None, text)


def chosen(losses: Mapping[str, torch.Tensor], sure: float, margin: float) -> str:
    """The name of least mean loss among the first and those that are surely, and by a margin, better than it.

    Args:
        losses: by name, of the same samples, `[samples]`.
        sure: in standard errors of the mean paired difference.
        margin: as a share of the first's mean loss.
    """
    first = next(iter(losses))
    level = float(losses[first].mean())
    rivals = {first: level}
    for name, loss in losses.items():
        gain = losses[first] - loss
        error = float(gain.std()) / len(gain) ** 0.5 if len(gain) > 1 else 0.0
        if float(gain.mean()) > max(sure * error, margin * level):
            rivals[name] = float(loss.mean())
    return min(rivals, key=lambda name: rivals[name])

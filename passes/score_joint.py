"""What a share of a group's units loses together, measured: single losses do not add up."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch

from optin_fx.analysis import Consumer, analyse
from optin_fx.data import Batch, parted, rows
from optin_fx.errors import PipelineError
from optin_fx.execution import accumulate
from optin_fx.finite import refuse_non_finite
from optin_fx.frontier import Frontier, Functional, places
from optin_fx.groups import group, leaf_of
from optin_fx.interpreter import Runner, device_of
from optin_fx.outputs import divergence, output_terms
from optin_fx.pipeline import ScorePass, as_tuples, find_criterion, scores_within
from optin_fx.program import Program
from optin_fx.scores import Scores
from optin_fx.statistics import ConsumerMoments, Statistics, collect
from optin_fx.units import unit_of_position

Place = tuple[str, int, int]
"""A consumer's node, operand and dim."""


@dataclass(frozen=True)
class ScoreJoint(ScorePass):
    """The measured loss of removing a group's weakest tenth, quarter, half, ... at once, shared out among them.

    Scores of single units rank the units of a group well, and say little about how many of them can go: neurons that do each other's work
    are worth nothing one by one and much together, and what compensation can make up for is not lost. Here another criterion ranks
    the units of each group (`within`). Then, group by group, the lowest `shares` of them are taken away from the dense program, what the
    consumers read of them is predicted linearly from the units that stay, as a refit of their weights would do, and the divergence of the
    outputs (`optin_fx.outputs`) is measured on data that the prediction has not seen. A unit's score is the slope of its group's
    curve where it goes; slopes are made to rise (greatest convex minorant), so that the weakest unit goes first. As in SPDY (Frantar &
    Alistarh, 2022), losses of different groups are taken to add up.
    Cost: `within`, unless the scores at hand are its; one forward with covariances; and for each group and share what lies behind the
    group, on `measured` samples.

    Attributes:
        within: criterion that ranks the units of each group.
        shares: of a group's units that are taken away, ascending, between 0 and 1.
        allocate: how the loss between two shares is shared out among the units that go there: "even", or "within", in proportion to that
            criterion's values.
        kinds: kinds of groups that are measured; the others keep the values of `within`, which are then not comparable with these. Empty
            for all.
        refitted: whether the units that stay make up for the others, as far as they can linearly; else they are masked.
        measured: at most about so many samples (whole batches, at most half of all) measure; the others give the covariances.
        ridge: damping of the covariances, as a share of their mean diagonal.
        seed: of `within`.
    """

    within: str = "trajectory-sketch"
    shares: tuple[float, ...] = (0.1, 0.25, 0.5, 0.75, 0.95)
    refitted: bool = True
    measured: int = 64
    ridge: float = 1e-2
    seed: int = 0
    allocate: str = "even"
    kinds: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        as_tuples(self, "kinds")
        if self.allocate not in ("even", "within"):
            raise ValueError("allocate is even or within")
        if not self.shares or list(self.shares) != sorted(set(self.shares)) or not 0 < self.shares[0] <= self.shares[-1] < 1:
            raise ValueError("shares are ascending numbers between 0 and 1")

    def score(self, program: Program, batches: Sequence[Batch]) -> dict[str, torch.Tensor]:
        """Slopes of measured loss curves."""
        return self.score_after(program, batches, None)

    def score_after(self, program: Program, batches: Sequence[Batch], earlier: Scores | None) -> dict[str, torch.Tensor]:
        """The same; where the earlier scores are those of `within`, they are taken as they are."""
        found = self._within(program, batches, earlier)
        weakest = {g.name: torch.argsort(found[g.name], stable=True) for g in group(program).free_of(self.kinds)}
        total = sum(map(rows, batches))
        seen, unseen = parted(program, batches, max(total - self.measured, total // 2))
        statistics = collect(program, seen, gram=True, at=_mixed(program, weakest)) if self.refitted else None
        for name, curve in self._curves(program, unseen, weakest, statistics).items():
            order = weakest[name]
            slopes = slopes_of([(0, 0.0), *curve], found[name][order] if self.allocate == "within" else torch.ones(len(order)))
            found[name] = torch.empty_like(slopes).index_copy_(0, order, slopes)
        return found

    def _within(self, program: Program, batches: Sequence[Batch], earlier: Scores | None) -> dict[str, torch.Tensor]:
        step = find_criterion(self.within, f"{self.name()}, option within")
        if isinstance(step, ScoreJoint):
            raise PipelineError(f"{self.within!r} ranks no units", at="score-joint, option within", fix="name another score pass")
        return scores_within(step, program, batches, earlier)

    def _curves(
        self, program: Program, batches: Sequence[Batch], weakest: Mapping[str, torch.Tensor], statistics: Statistics | None
    ) -> dict[str, list[tuple[int, float]]]:
        """By group: how many units went, and the mean divergence of a sample's outputs."""
        items = [(n, count) for n, order in weakest.items() for count in self._counts(len(order))]
        terms, samples, at = output_terms(program), sum(rows(batch) for batch in batches), places(program)
        items.sort(key=lambda item: at[item[0]])
        with torch.no_grad():
            dense = [Runner(program)(batch) for batch in batches]
        for number, (batch, outputs) in enumerate(zip(batches, dense, strict=True)):
            refuse_non_finite(program, batch, outputs, number)
        frontiers = [Frontier(program, batch) for batch in batches]

        def step(_: int, item: tuple[str, int]) -> dict[str, torch.Tensor]:
            name, count = item
            loss = torch.zeros((), dtype=torch.float64)
            with torch.no_grad():
                without = _Without(program, name, weakest[name][:count], statistics, self.ridge)
                for frontier, before in zip(frontiers, dense, strict=True):
                    frontier.advance(at[name])
                    loss += divergence(terms, frontier.onward(without), before).sum().cpu()
            return {f"{name}/{count}": loss / samples}

        found = accumulate("curves", items, step)
        return {name: [(count, float(found[f"{name}/{count}"])) for count in self._counts(len(order))] for name, order in weakest.items()}

    def _counts(self, extent: int) -> list[int]:
        return sorted({min(max(1, round(share * extent)), extent) for share in self.shares})


def slopes_of(curve: Sequence[tuple[int, float]], worth: torch.Tensor) -> torch.Tensor:
    """Loss per unit in the order in which units go, `[extent]` float64, never falling; beyond the last point as before it.

    Args:
        curve: (units gone, loss), from (0, 0) on.
        worth: of the units in that order, not negative, `[extent]`: a loss between two points is shared out in proportion; evenly where
            all are 0.
    """
    from scipy.optimize import isotonic_regression

    worth = worth.double().clamp_min(0)
    along = torch.empty_like(worth)
    for (start, before), (end, after) in pairwise(curve):
        end_of_part = len(worth) if end == curve[-1][0] else end
        total = worth[start:end].sum()
        shares = worth[start:end_of_part] / total if total > 0 else torch.full((end_of_part - start,), 1.0 / (end - start)).double()
        along[start:end_of_part] = (after - before) * shares
    rising = torch.from_numpy(isotonic_regression(along.numpy()).x).clamp_min(1e-12)
    return rising * (1 + 1e-6 * torch.arange(len(rising), dtype=torch.float64) / len(rising))  # equal slopes, too, keep the order


class _Without(Functional):
    """The dense program without some units of one group; what consumers read of them is predicted from the others, where they have weights.

    Args:
        gone: numbers of the units.
        statistics: of consumers with weights, with Gram matrices; None to mask only.
        ridge: see `ScoreJoint`.
    """

    def __init__(self, program: Program, name: str, gone: torch.Tensor, statistics: Statistics | None, ridge: float) -> None:
        extent = next(g.extent for g in group(program).free if g.name == name)
        gate = torch.ones(extent, device=device_of(program))
        super().__init__(program, gates={name: gate.index_fill_(0, gone.to(gate.device), 0.0)})
        self.mixes: dict[Place, Mix] = {}
        leaf = leaf_of(self.analysis, name)
        for moments in statistics.consumers if statistics else ():
            consumer = moments.consumer
            if leaf in consumer.leaves:
                operand = self.analysis.applied[consumer.node].call.operands[consumer.operand]
                units = unit_of_position(self.analysis.axes[operand.node.name][consumer.dim], leaf)
                self.mixes[_place(consumer)] = Mix.of(moments, torch.isin(units, gone), ridge)

    def gated(self, consumer: Consumer, value: torch.Tensor) -> torch.Tensor:
        """The consumer's operand, without what is gone of it."""
        mix = self.mixes.get(_place(consumer))
        return super().gated(consumer, value) if mix is None else mix(value, consumer.dim)


def _mixed(program: Program, names: Iterable[str]) -> Callable[[Consumer], bool]:
    """Whether a consumer multiplies units of these groups by weights."""
    analysis = analyse(program)
    read = {leaf_of(analysis, name) for name in names}
    return lambda consumer: analysis.applied[consumer.node].is_weighted and not read.isdisjoint(consumer.leaves)


@dataclass(frozen=True)
class Mix:
    """Some positions' best linear prediction from the others, put in their place.

    Attributes:
        kept, gone: numbers of the positions that predict and that are predicted.
        weights, offset: `x[gone] = x[kept] @ weights + offset`.
    """

    kept: torch.Tensor
    gone: torch.Tensor
    weights: torch.Tensor
    offset: torch.Tensor

    @classmethod
    def of(cls, moments: ConsumerMoments, gone: torch.Tensor, ridge: float) -> Mix:
        """From moments of what a consumer reads.

        Args:
            gone: of every position, whether it is to be predicted. `[size]` bool.
            ridge: damping, as a share of the mean variance.
        """
        assert moments.gram is not None
        covariance = moments.gram - torch.outer(moments.mean, moments.mean)
        kept, lost = (~gone).nonzero().flatten(), gone.nonzero().flatten()
        own, across = covariance[kept][:, kept], covariance[kept][:, lost]
        own.diagonal().add_(ridge * own.diagonal().mean().clamp_min(1e-12) if len(own) else 0.0)
        weights = torch.linalg.solve(own, across) if len(own) else across
        return cls(kept, lost, weights, moments.mean[lost] - moments.mean[kept] @ weights)

    def __call__(self, value: torch.Tensor, dim: int) -> torch.Tensor:
        """An operand with predictions along a dim."""
        x = value.movedim(dim, -1)
        kept, gone = self.kept.to(x.device), self.gone.to(x.device)
        predicted = x.index_select(-1, kept) @ self.weights.to(x) + self.offset.to(x)
        return x.index_copy(-1, gone, predicted).movedim(-1, dim)


def _place(consumer: Consumer) -> Place:
    return consumer.node, consumer.operand, consumer.dim

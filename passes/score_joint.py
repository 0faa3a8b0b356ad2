"""What a share of a group's units loses together, measured: single losses do not add up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch

from optin_fx.analysis import Consumer
from optin_fx.data import Batch, parted, rows
from optin_fx.errors import PipelineError
from optin_fx.execution import accumulate
from optin_fx.finite import refuse_non_finite
from optin_fx.groups import group, leaf_of
from optin_fx.interpreter import Runner
from optin_fx.outputs import divergence, output_terms
from optin_fx.pipeline import ScorePass, find_criterion
from optin_fx.program import Program
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
    Cost: `within`, one forward with covariances, and one forward on `measured` samples for each group and share.

    Attributes:
        within: criterion that ranks the units of each group.
        shares: of a group's units that are taken away, ascending, between 0 and 1.
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

    def __post_init__(self) -> None:
        if not self.shares or list(self.shares) != sorted(set(self.shares)) or not 0 < self.shares[0] <= self.shares[-1] < 1:
            raise ValueError("shares are ascending numbers between 0 and 1")

    def score(self, program: Program, batches: Sequence[Batch]) -> dict[str, torch.Tensor]:
        """Slopes of measured loss curves."""
        weakest = {name: torch.argsort(values, stable=True) for name, values in self._ranked(program, batches).items()}
        total = sum(map(rows, batches))
        seen, unseen = parted(program, batches, max(total - self.measured, total // 2))
        statistics = collect(program, seen, gram=True) if self.refitted else None
        curves = self._curves(program, unseen, weakest, statistics)
        found = {}
        for name, order in weakest.items():
            slopes = slopes_of([(0, 0.0), *curves[name]], len(order))
            found[name] = torch.empty_like(slopes).index_copy_(0, order.cpu(), slopes)
        return found

    def _ranked(self, program: Program, batches: Sequence[Batch]) -> dict[str, torch.Tensor]:
        step = find_criterion(self.within, f"{self.name()}, option within")
        if isinstance(step, ScoreJoint):
            raise PipelineError(f"{self.within!r} ranks no units", at="score-joint, option within", fix="name another score pass")
        values = step.score(program, batches)
        return {g.name: values[g.name] for g in group(program).free}

    def _curves(
        self, program: Program, batches: Sequence[Batch], weakest: Mapping[str, torch.Tensor], statistics: Statistics | None
    ) -> dict[str, list[tuple[int, float]]]:
        """By group: how many units went, and the mean divergence of a sample's outputs."""
        items = [(n, count) for n, order in weakest.items() for count in self._counts(len(order))]
        terms, samples = output_terms(program), sum(rows(batch) for batch in batches)
        with torch.no_grad():
            dense = [Runner(program)(batch) for batch in batches]
        for number, (batch, outputs) in enumerate(zip(batches, dense, strict=True)):
            refuse_non_finite(program, batch, outputs, number)

        def step(_: int, item: tuple[str, int]) -> dict[str, torch.Tensor]:
            name, count = item
            loss = torch.zeros((), dtype=torch.float64)
            with torch.no_grad():
                without = _Without(program, name, weakest[name][:count], statistics, self.ridge)
                for batch, before in zip(batches, dense, strict=True):
                    loss += divergence(terms, without(batch), before).sum().cpu()
            return {f"{name}/{count}": loss / samples}

        found = accumulate("curves", items, step)
        return {name: [(count, float(found[f"{name}/{count}"])) for count in self._counts(len(order))] for name, order in weakest.items()}

    def _counts(self, extent: int) -> list[int]:
        return sorted({min(max(1, round(share * extent)), extent) for share in self.shares})


def slopes_of(curve: Sequence[tuple[int, float]], extent: int) -> torch.Tensor:
    """Loss per unit in the order in which units go, `[extent]` float64, never falling; beyond the last point as before it.

    Args:
        curve: (units gone, loss), from (0, 0) on.
    """
    from scipy.optimize import isotonic_regression

    widths = torch.tensor([b - a for (a, _), (b, _) in pairwise(curve)])
    rises = torch.tensor([b - a for (_, a), (_, b) in pairwise(curve)], dtype=torch.float64)
    slopes = torch.from_numpy(isotonic_regression((rises / widths).numpy(), weights=widths.numpy()).x).clamp_min(1e-12)
    widths[-1] += extent - curve[-1][0]
    along = slopes.repeat_interleave(widths)
    return along * (1 + 1e-6 * torch.arange(extent, dtype=torch.float64) / extent)  # equal slopes, too, keep the order


class _Without(Runner):
    """The dense program without some units of one group; what consumers read of them is predicted from the others, where they have weights.

    Args:
        gone: numbers of the units.
        statistics: with Gram matrices; None to mask only.
        ridge: see `ScoreJoint`.
    """

    def __init__(self, program: Program, name: str, gone: torch.Tensor, statistics: Statistics | None, ridge: float) -> None:
        extent = next(g.extent for g in group(program).free if g.name == name)
        super().__init__(program, gates={name: torch.ones(extent).index_fill_(0, gone.cpu(), 0.0)})
        self.mixes: dict[Place, tuple[torch.Tensor, torch.Tensor]] = {}
        leaf = leaf_of(self.analysis, name)
        for moments in statistics.consumers if statistics else ():
            consumer = moments.consumer
            if leaf in consumer.leaves and self.analysis.applied[consumer.node].is_weighted:
                operand = self.analysis.applied[consumer.node].call.operands[consumer.operand]
                units = unit_of_position(self.analysis.axes[operand.node.name][consumer.dim], leaf)
                self.mixes[_place(consumer)] = predictor(moments, torch.isin(units, gone.cpu()), ridge)

    def gated(self, consumer: Consumer, value: torch.Tensor) -> torch.Tensor:
        """The consumer's operand, without what is gone of it."""
        mix = self.mixes.get(_place(consumer))
        if mix is None:
            return super().gated(consumer, value)
        matrix, offset = (part.to(value) for part in mix)
        return (value.movedim(consumer.dim, -1) @ matrix + offset).movedim(-1, consumer.dim)


def predictor(moments: ConsumerMoments, gone: torch.Tensor, ridge: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Matrix and offset that put in place of some positions their best linear prediction from the others: `x @ matrix + offset`.

    Args:
        gone: of every position, whether it is to be predicted. `[size]` bool.
        ridge: damping, as a share of the mean variance.
    """
    assert moments.gram is not None
    covariance = moments.gram - torch.outer(moments.mean, moments.mean)
    kept = ~gone
    own = covariance[kept][:, kept]
    damped = own + (ridge * own.diagonal().mean().clamp_min(1e-12)) * torch.eye(len(own), dtype=own.dtype) if len(own) else own
    weights = torch.linalg.solve(damped, covariance[kept][:, gone], left=True) if len(own) else covariance[kept][:, gone]
    matrix = torch.diag(kept.to(covariance.dtype))
    matrix[kept.nonzero(), gone.nonzero().T] = weights
    offset = torch.where(gone, moments.mean - moments.mean @ torch.where(gone, matrix, 0.0), 0.0)
    return matrix, offset


def _place(consumer: Consumer) -> Place:
    return consumer.node, consumer.operand, consumer.dim

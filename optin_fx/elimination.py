"""Greedy removal with compensation: what each further unit costs when the units that stay make up for all that went.

A consumer y = W x + b of inputs with covariance C loses, when the columns P go and the rest is refitted with a ridge towards its
old weights, `J(P) = tr(G W_P [(C^-1)_PP]^-1 W_P^T)`, C damped and G a weight for every output (the joint form of Optimal Brain
Surgeon; with an offset C takes the place of the second moment). Removing units one after another, W and C^-1 being updated
after each, adds up to J exactly.

What is measured on the rows that the refit was made from is too good: a loss counts `n / (n - k)` times, as n rows having been
explained with k degrees of freedom leave n - k (the unbiased residual variance of least squares; k is the effective number under the
damping). Behind a pooling over whole images, 64 images span 64 of 1,280 channels, and without it all the others would seem to cost
nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass
class Elimination:
    """One consumer on the way. Losses see the weight through `W^T G W` alone, so any factor of that will do, and a short one is cheap.

    Attributes:
        factor: `F` with `F^T F = W^T G W`, what went being folded in, `[at most columns, columns]`.
        inverse: inverse of the damped covariance of the columns that are left, zero elsewhere, `[columns, columns]`.
        columns: the columns of every unit, `[units, columns per unit]`.
        damping: what was added to the covariance's diagonal.
        rows: how many rows the covariance was estimated from.
    """

    factor: torch.Tensor
    inverse: torch.Tensor
    columns: torch.Tensor
    damping: float = 0.0
    rows: float = math.inf

    @classmethod
    def of(cls, weight: torch.Tensor, covariance: torch.Tensor, columns: torch.Tensor, ridge: float, rows: float = math.inf) -> Elimination:
        """Start with every unit there.

        Args:
            weight: `[outputs, columns]`, scaled by the square roots of the outputs' weights.
            ridge: damping, as a share of the mean variance of the columns.
            rows: see above.
        """
        damping = max(ridge * float(covariance.diagonal().mean()), 1e-12)
        damped = covariance.clone()
        damped.diagonal().add_(damping)
        return cls(
            _shortened(weight.to(torch.float64, copy=True)), torch.cholesky_inverse(torch.linalg.cholesky(damped)), columns, damping, rows
        )

    @property
    def optimism(self) -> float:
        """How many times larger than on its own rows a loss is on others."""
        if math.isinf(self.rows):
            return 1.0
        left = self.inverse.diagonal()
        freedom = float((left > 0).sum()) - self.damping * float(left.sum())
        return self.rows / max(self.rows - freedom, 1.0)

    def losses(self, units: torch.Tensor) -> torch.Tensor:
        """What removing each of some units alone would add, `[len(units)]`: `tr([(C^-1)_uu]^-1 (W^T G W)_uu)`."""
        columns = self.columns[units]
        if columns.shape[1] == 1:
            return self.optimism * self.factor.square().sum(0)[columns[:, 0]] / self.inverse.diagonal()[columns[:, 0]]
        blocks, own = self.inverse[columns[:, :, None], columns[:, None, :]], self.factor[:, columns].transpose(0, 1)
        return self.optimism * torch.linalg.solve(blocks, own.mT @ own).diagonal(dim1=1, dim2=2).sum(1)

    def remove(self, units: torch.Tensor) -> None:
        """Take units out and fold them into what stays: `W <- W - W_P S`, `C^-1 <- C^-1 - (C^-1)_{:P} S`, `S = [(C^-1)_PP]^-1 (C^-1)_P`."""
        gone = self.columns[units].flatten()
        read = self.inverse[gone]
        share = read / read[:, gone] if len(gone) == 1 else torch.linalg.solve(read[:, gone], read)
        self.factor.addmm_(self.factor[:, gone], share, alpha=-1.0)
        self.inverse.addmm_(read.T, share, alpha=-1.0)
        self.factor[:, gone] = 0.0
        self.inverse[gone] = 0.0
        self.inverse[:, gone] = 0.0

    def compacted(self, alive: torch.Tensor) -> Elimination:
        """The same without the columns of units that are gone; units keep their numbers."""
        keep = torch.ones(len(self.inverse), dtype=torch.bool)
        keep[self.columns.flatten()] = False
        keep[self.columns[alive].flatten()] = True
        position = keep.cumsum(0) - 1
        return Elimination(_shortened(self.factor[:, keep]), self.inverse[keep][:, keep], position[self.columns], self.damping, self.rows)

    def among(self, units: torch.Tensor) -> Elimination:
        """The same for some units alone, which are numbered anew; exact as long as only they are removed."""
        own = self.columns[units].flatten()
        columns = torch.arange(len(own)).reshape(len(units), -1)
        return Elimination(math.sqrt(self.optimism) * _shortened(self.factor[:, own]), self.inverse[own][:, own], columns)


def _shortened(factor: torch.Tensor) -> torch.Tensor:
    """A factor of the same product `F^T F` with no more rows than columns."""
    return torch.linalg.qr(factor, mode="r").R if factor.shape[0] > factor.shape[1] else factor


def removal_order(consumers: Sequence[Elimination], units: int, chunk: int) -> tuple[list[int], list[float]]:
    """Units in the order of greedy removal, and what each added to the loss of all consumers together.

    Args:
        chunk: so many units are removed between two updates of the whole matrices. Within a chunk the greedy choice is exact among the
            candidates, four times as many, that cost least when it began.
    """
    alive, size = torch.arange(units), units
    order: list[int] = []
    added: list[float] = []
    while len(alive):
        count = min(chunk, len(alive))
        losses = torch.stack([c.losses(alive) for c in consumers]).sum(0)
        if count == 1:
            picked, costs = [int(losses.argmin())], [float(losses.min())]
        else:
            candidates = torch.argsort(losses)[: 4 * count]
            picked, costs = _greedy([c.among(alive[candidates]) for c in consumers], len(candidates), count)
            picked = candidates[picked].tolist()
        gone = alive[picked]
        for consumer in consumers:
            consumer.remove(gone)
        order += gone.tolist()
        added += costs
        keep = torch.ones(len(alive), dtype=torch.bool)
        keep[picked] = False
        alive = alive[keep]
        if len(alive) <= size // 2:  # matrices of the units that are left
            consumers, size = [c.compacted(alive) for c in consumers], len(alive)
    return order, added


def _greedy(consumers: Sequence[Elimination], units: int, count: int) -> tuple[list[int], list[float]]:
    alive = torch.ones(units, dtype=torch.bool)
    picked, costs = [], []
    for _ in range(count):
        left = torch.nonzero(alive).flatten()
        losses = torch.stack([c.losses(left) for c in consumers]).sum(0)
        unit = left[int(losses.argmin())]
        picked.append(int(unit))
        costs.append(float(losses.min()))
        for consumer in consumers:
            consumer.remove(unit[None])
        alive[unit] = False
    return picked, costs


def scores_of_curve(order: Sequence[int], added: Sequence[float]) -> torch.Tensor:
    """Scores whose ranking is the order, and whose sum over the first k is the curve's lower convex hull, `[units]` float64.

    A search that ranks units keeps prefixes of an order only if the marginal losses rise; where they do not, they are levelled.
    """
    blocks: list[tuple[float, int]] = []
    for loss in added:
        total, size = max(loss, 0.0), 1
        while blocks and blocks[-1][0] / blocks[-1][1] >= total / size:
            before, width = blocks.pop()
            total, size = total + before, size + width
        blocks.append((total, size))
    levels = torch.cat([torch.full((size,), total / size, dtype=torch.float64) for total, size in blocks])
    rising = 1 + 1e-9 * torch.arange(len(levels), dtype=torch.float64)
    scores = torch.empty(len(levels), dtype=torch.float64)
    scores[torch.tensor(list(order))] = levels * rising + 1e-30 * torch.arange(len(levels), dtype=torch.float64)
    return scores

"""Second moments of a regression, accumulated chunk by chunk, and the closed-form refit that they give."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

INPUT_SUMS = ("count", "rows", "xx", "x")
"""What `input_sums` sums up, and `Moments.of_inputs` takes."""

STRIP = 128
"""Rows of a strip in `gram_matrix`: fewer save more of the products, but leave less work for each call."""


def gram_matrix(left: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """`left^T x [inputs, inputs]` where that is symmetric, as for `x` with its rows weighed; `left` and `x` are `[rows, inputs]`.

    Made in strips right of the diagonal, and mirrored: two thirds of the time of the whole product from 384 columns on. PyTorch has no
    product (BLAS: syrk) that would do so.
    """
    size = x.shape[1]
    found = x.new_empty(size, size)
    for begin in range(0, size, STRIP):
        end = min(begin + STRIP, size)
        torch.mm(left[:, begin:end].T, x[:, begin:], out=found[begin:end, begin:])
        found[end:, begin:end] = found[begin:end, end:].T
    return found


def row_sum(x: torch.Tensor) -> torch.Tensor:
    """Sum over rows in float64, of partial sums in the rows' precision: to two parts in 10^7 (PyTorch adds in cascades), nearer than the
    products are. Converting the rows first takes ten to twenty-five times as long.
    """
    return x.sum(0).double()


def input_sums(x: torch.Tensor, weights: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
    """Sums over rows `x [rows, inputs]`, each counted `weights [rows]` times; one by default. On the CPU, `xx` in the rows' precision."""
    rows, left = torch.tensor(len(x)), x if weights is None else x * weights[:, None]
    count = rows.double() if weights is None else weights.sum(dtype=torch.float64)
    found = (count, rows, gram_matrix(left, x), row_sum(left))
    return {name: value.cpu() for name, value in zip(INPUT_SUMS, found, strict=True)}


class Moments:
    """Sums over rows of x x^T, x y^T, x, y and y^2, in float64; never the rows themselves."""

    def __init__(self, inputs: int, outputs: int) -> None:
        self.count = 0.0
        self.rows = 0
        self.xx = torch.zeros(inputs, inputs, dtype=torch.float64)
        self.xy = torch.zeros(inputs, outputs, dtype=torch.float64)
        self.x = torch.zeros(inputs, dtype=torch.float64)
        self.y = torch.zeros(outputs, dtype=torch.float64)
        self.yy = torch.zeros(outputs, dtype=torch.float64)

    @classmethod
    def of_inputs(cls, *, count: torch.Tensor | float, rows: torch.Tensor | int, xx: torch.Tensor, x: torch.Tensor) -> Moments:
        """Moments of a regression without outputs, from sums that were made elsewhere."""
        made = cls(len(x), 0)
        made.count, made.rows, made.xx, made.x = float(count), int(rows), xx, x
        return made

    def add(self, x: torch.Tensor, y: torch.Tensor, weights: torch.Tensor | None = None) -> None:
        """Add rows `x [rows, inputs]` and `y [rows, outputs]`, each counted `weights [rows]` times; one by default.

        Products are taken in the rows' own precision.
        """
        inputs = input_sums(x, weights)
        self.count += float(inputs["count"])
        self.rows += int(inputs["rows"])
        self.xx += inputs["xx"]
        self.x += inputs["x"]
        right = y if weights is None else y * weights[:, None]
        self.xy += (x.T @ right).cpu()
        self.y += row_sum(right).cpu()
        self.yy += row_sum(right * y).cpu()

    def __add__(self, other: Moments) -> Moments:
        result = Moments(self.xx.shape[0], self.xy.shape[1])
        for name in ("count", "rows", "xx", "xy", "x", "y", "yy"):
            setattr(result, name, getattr(self, name) + getattr(other, name))
        return result

    def of_outputs(self, which: slice) -> Moments:
        """Those of some of the outputs; sums that stay the same are shared."""
        made = Moments.of_inputs(count=self.count, rows=self.rows, xx=self.xx, x=self.x)
        made.xy, made.y, made.yy = self.xy[:, which], self.y[which], self.yy[which]
        return made

    def residual(self, weight: torch.Tensor, bias: torch.Tensor) -> float:
        """Mean squared error of `x W^T + b` against y, `weight [outputs, inputs]`."""
        return self.residuals(weight, [bias])[0]

    def residuals(self, weight: torch.Tensor, biases: Sequence[torch.Tensor]) -> list[float]:
        """Those of one weight with several biases, for about the price of one."""
        w = weight.T
        without = self.yy.sum() - 2 * (w * self.xy).sum() + (w * (self.xx @ w)).sum()
        slope = 2 * (self.x @ w - self.y)
        errors = (without + slope @ bias + self.count * bias.square().sum() for bias in biases)
        return [float(error) / max(self.count, 1.0) for error in errors]

    def centred(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Means of x and y, covariance of x `[inputs, inputs]` and of x with y `[inputs, outputs]`."""
        mean_x, mean_y = self.x / self.count, self.y / self.count
        cov = self.xx / self.count - torch.outer(mean_x, mean_x)
        return mean_x, mean_y, cov, self.xy / self.count - torch.outer(mean_x, mean_y)

    @property
    def variance(self) -> float:
        """Mean squared deviation of y from its mean."""
        return float(self.yy.sum()) / max(self.count, 1.0) - float((self.y / max(self.count, 1.0)).square().sum())


@dataclass(frozen=True)
class Refit:
    """A solution: `weight [outputs, inputs]`, `bias [outputs]`, both float64."""

    weight: torch.Tensor
    bias: torch.Tensor


def ridge(moments: Moments, prior: torch.Tensor, ratio: float) -> Refit:
    """`argmin_V E|y - V x - b|^2 + lam |V - prior|^2`, with `lam = ratio * mean diag Cov(x)`.

    The ridge pulls towards the old weights, not towards zero: `V = (Cov_yx + lam prior)(Cov_xx + lam I)^-1`.
    """
    mean_x, mean_y, cov, cross = moments.centred()
    lam = max(ratio * float(cov.diagonal().mean()), 1e-12)
    cov.diagonal().add_(lam)
    factor, info = torch.linalg.cholesky_ex(cov)
    right = cross + lam * prior.T
    solved = torch.cholesky_solve(right, factor) if int(info) == 0 else torch.linalg.lstsq(cov, right).solution
    weight = solved.T
    return Refit(weight, mean_y - weight @ mean_x)


def scales(moments: Moments, prior: torch.Tensor, units: torch.Tensor, ratio: float) -> Refit:
    """One factor s per unit and a bias: `argmin E|y - sum_u s_u (W x)_u - b|^2 + lam |s - 1|^2`, folded into the weights.

    Kwon et al. (2022, eq. 12) tune their masks so; they damp by an absolute amount, here `lam = ratio * mean diag` of the system.

    Args:
        prior: `[outputs, inputs]`. units: for every input column the number of its unit, `[inputs]`.
    """
    mean_x, mean_y, cov, cross = moments.centred()
    count = int(units.max()) + 1
    system = torch.zeros(count, count, dtype=torch.float64)
    per_column = torch.zeros(count, len(units), dtype=torch.float64).index_add_(0, units, cov * (prior.T @ prior))
    system.index_add_(1, units, per_column)
    right = torch.zeros(count, dtype=torch.float64).index_add_(0, units, (prior.T * cross).sum(1))
    lam = max(ratio * float(system.diagonal().mean()), 1e-12)
    system.diagonal().add_(lam)
    weight = prior * torch.linalg.lstsq(system, (right + lam)[:, None]).solution[units, 0]
    return Refit(weight, mean_y - weight @ mean_x)


def offset_only(moments: Moments, prior: torch.Tensor) -> Refit:
    """The old weights with the best bias."""
    return Refit(prior, (moments.y - prior @ moments.x) / moments.count)

"""Inner products refitted: the matrix between two sides of which dims are gone, in closed form, from second moments of each side.

Attention logits `q k^T` whose sides lost dims are to be what they were: `min_A sum_n |X_n A Y_n^T - U_n V_n^T|^2 + lam |A - A_0|^2`, with n
over samples, `X_n [rows, p]` and `Y_n [columns, p']` the sides that are left and `U_n`, `V_n` the dense ones. This is least squares with
the normal operator `A -> sum_n (X_n^T X_n) A (Y_n^T Y_n)`; logits are never formed, and pairs of different samples, which no attention
sees, do not count. (CORP, arXiv 2602.05243, pools all samples, which makes the operator one Kronecker product; here that is the
preconditioner.) The ridge pulls to the old matrix.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch

Matrices = torch.Tensor
DIRECT = 640
"""Most unknowns of a matrix for which the normal equations are written out: cheaper than conjugate gradients up to widths of about 25."""


class BilinearMoments:
    """Sums over samples that the refits of several independent pairs of sides need, in float64; neither rows nor logits are kept.

    Attributes:
        left, right: per batch `X^T X [pairs, samples, p, p]` and `Y^T Y [pairs, samples, p', p']`, where `normal` would be large.
        normal: else, the operator as matrices, `[pairs, p x p', p x p']`.
        cross: `sum_n X^T U V^T Y`, `[pairs, p, p']`. energy: `sum_n |U V^T|^2`, `[pairs]`.
    """

    def __init__(self) -> None:
        self.left: list[torch.Tensor] = []
        self.right: list[torch.Tensor] = []
        self.normal: torch.Tensor | float = 0.0
        self.cross: torch.Tensor | float = 0.0
        self.energy: torch.Tensor | float = 0.0

    def add(self, x: torch.Tensor, y: torch.Tensor, u: torch.Tensor, v: torch.Tensor) -> None:
        """Add samples: `x [pairs, samples, rows, p]`, `y [pairs, samples, columns, p']`, and the dense `u`, `v` with their widths."""
        x, y, u, v = (side.double() for side in (x, y, u, v))
        left, right = (x.mT @ x).cpu(), (y.mT @ y).cpu()
        if x.shape[-1] * y.shape[-1] <= DIRECT:
            self.normal = self.normal + _written_out(left, right)
        else:
            self.left.append(left)
            self.right.append(right)
        self.cross = self.cross + ((x.mT @ u) @ (v.mT @ y)).sum(1).cpu()
        self.energy = self.energy + ((u.mT @ u) * (v.mT @ v)).sum((1, 2, 3)).cpu()

    def __add__(self, other: BilinearMoments) -> BilinearMoments:
        result = BilinearMoments()
        for name in ("left", "right", "normal", "cross", "energy"):
            setattr(result, name, getattr(self, name) + getattr(other, name))
        return result

    def system(self) -> BilinearSystem:
        """The least-squares problem of all samples so far."""
        assert isinstance(self.cross, torch.Tensor)
        assert isinstance(self.energy, torch.Tensor)
        if isinstance(self.normal, torch.Tensor):
            return WrittenOut(self.cross, self.energy, self.normal)
        return Factored(self.cross, self.energy, torch.cat(self.left, 1), torch.cat(self.right, 1))


class BilinearSystem(ABC):
    """Least squares for one matrix `[p, p']` per pair of sides; arguments as in `BilinearMoments`."""

    def __init__(self, cross: torch.Tensor, energy: torch.Tensor) -> None:
        self.cross, self.energy = cross, energy

    @abstractmethod
    def applied(self, matrix: Matrices) -> Matrices:
        """`sum_n X^T X A Y^T Y`."""

    @abstractmethod
    def solve(self, prior: Matrices, ratio: float, start: Matrices, tolerance: float = 1e-7) -> Matrices:
        """The best matrices with a ridge of `ratio` times the operator's mean diagonal.

        Args:
            prior: what the ridge pulls to, `[pairs, p, p']`.
            start: where to begin. tolerance: what may be left of the residual, as a share of the prior's. Direct solutions need neither.
        """

    def error(self, matrix: Matrices) -> torch.Tensor:
        """Squared error of the inner products, summed over samples, `[pairs]`."""
        return self.energy - 2 * (matrix * self.cross).sum((1, 2)) + (matrix * self.applied(matrix)).sum((1, 2))


class WrittenOut(BilinearSystem):
    """With the operator as matrices, `normal [pairs, p x p', p x p']`."""

    def __init__(self, cross: torch.Tensor, energy: torch.Tensor, normal: torch.Tensor) -> None:
        super().__init__(cross, energy)
        self.normal = normal

    def applied(self, matrix: Matrices) -> Matrices:
        return (self.normal @ matrix.flatten(1)[..., None]).reshape(matrix.shape)

    def solve(self, prior: Matrices, ratio: float, start: Matrices, tolerance: float = 1e-7) -> Matrices:
        lam = _ridge(ratio, self.normal.diagonal(dim1=1, dim2=2).mean(1))
        damped = self.normal + lam * torch.eye(self.normal.shape[-1], dtype=torch.float64)
        change = torch.linalg.solve(damped, (self.cross - self.applied(prior)).flatten(1))
        return prior + change.reshape(prior.shape)


class Factored(BilinearSystem):
    """With the factors of every sample, `left [pairs, samples, p, p]` and `right`: conjugate gradients."""

    def __init__(self, cross: torch.Tensor, energy: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
        super().__init__(cross, energy)
        self.left, self.right, self.samples = left, right, left.shape[1]
        self.pooled = [torch.linalg.eigh(side.sum(1)) for side in (left, right)]

    def applied(self, matrix: Matrices) -> Matrices:
        pairs, samples, p, other = *self.left.shape[:3], self.right.shape[-1]
        inner = (self.left.reshape(pairs, samples * p, p) @ matrix).reshape(pairs, samples, p, other)
        return inner.transpose(1, 2).reshape(pairs, p, samples * other) @ self.right.reshape(pairs, samples * other, other)

    def solve(self, prior: Matrices, ratio: float, start: Matrices, tolerance: float = 1e-7) -> Matrices:
        left, right = (side.diagonal(dim1=-2, dim2=-1).mean(-1) for side in (self.left, self.right))
        lam = _ridge(ratio, (left * right).sum(1))
        residual = self.cross - self.applied(prior)
        goal = tolerance**2 * _inner(residual, residual)
        residual = self.cross - self.applied(start) - lam * (start - prior)
        return start + _conjugate_gradients(lambda a: self.applied(a) + lam * a, residual, lambda r: self._preconditioned(r, lam), goal)

    def _preconditioned(self, residual: Matrices, lam: torch.Tensor) -> Matrices:
        """Solved for the pooled operator, `(sum_n X^T X) A (sum_n Y^T Y) / samples`."""
        (a, left), (b, right) = self.pooled
        values = a.clamp_min(0)[:, :, None] * b.clamp_min(0)[:, None, :] / self.samples + lam
        return left @ ((left.mT @ residual @ right) / values) @ right.mT


def _written_out(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """`A -> sum_n L_n A R_n` as matrices, for A row by row: `[pairs, p x p', p x p']`."""
    p, other = left.shape[-1], right.shape[-1]
    products = left.flatten(2).mT @ right.flatten(2)
    return products.unflatten(1, (p, p)).unflatten(3, (other, other)).transpose(2, 3).flatten(3, 4).flatten(1, 2)


def _ridge(ratio: float, diagonal: torch.Tensor) -> torch.Tensor:
    return (max(ratio, 1e-12) * diagonal).clamp_min(1e-30)[:, None, None]


def _inner(a: Matrices, b: Matrices) -> torch.Tensor:
    return (a * b).sum((1, 2), keepdim=True)


def _conjugate_gradients(
    operator: Callable[[Matrices], Matrices],
    right: Matrices,
    preconditioner: Callable[[Matrices], Matrices],
    goal: torch.Tensor,
    most: int = 100,
) -> Matrices:
    """Preconditioned conjugate gradients for several systems at once, until the squared residual of each is at its goal."""
    solution, residual = torch.zeros_like(right), right
    direction = z = preconditioner(residual)
    square = _inner(residual, z)
    for _ in range(most):
        if bool((_inner(residual, residual) <= goal).all()):
            break
        image = operator(direction)
        step = square / _inner(direction, image).clamp_min(1e-300)
        solution, residual = solution + step * direction, residual - step * image
        z = preconditioner(residual)
        before, square = square, _inner(residual, z)
        direction = z + square / before.clamp_min(1e-300) * direction
    return solution

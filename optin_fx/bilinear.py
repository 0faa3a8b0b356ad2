"""Inner products refitted: the matrix between two sides of which dims are gone, in closed form, from second moments of each side.

Attention logits `q k^T` whose sides lost dims are to be what they were: `min_A sum_n |X_n A Y_n^T - U_n V_n^T|^2 + lam |A - A_0|^2`, with n
over samples, `X_n [rows, p]` and `Y_n [columns, p']` the sides that are left and `U_n`, `V_n` the dense ones. This is least squares with
the normal operator `A -> sum_n (X_n^T X_n) A (Y_n^T Y_n)`; logits are never formed, and pairs of different samples, which no attention
sees, do not count. (CORP, arXiv 2602.05243, pools all samples, which makes the operator one Kronecker product; here that is the
preconditioner.) The ridge pulls to the old matrix.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import torch

Matrices = torch.Tensor
DIRECT = 640
"""Most unknowns of a matrix for which the normal equations are written out: cheaper than conjugate gradients up to widths of about 25."""


class BilinearMoments:
    """Sums over samples that the refits of several independent pairs of sides need, in float64; neither rows nor logits are kept.

    Attributes:
        left, right: per batch `X^T X [pairs, samples, p, p]` and `Y^T Y [pairs, samples, p', p']`.
        cross: `sum_n X^T U V^T Y`, `[pairs, p, p']`. energy: `sum_n |U V^T|^2`, `[pairs]`.
    """

    def __init__(self) -> None:
        self.left: list[torch.Tensor] = []
        self.right: list[torch.Tensor] = []
        self.cross: Matrices | float = 0.0
        self.energy: torch.Tensor | float = 0.0

    def add(self, x: torch.Tensor, y: torch.Tensor, u: torch.Tensor, v: torch.Tensor) -> None:
        """Add samples: `x [pairs, samples, rows, p]`, `y [pairs, samples, columns, p']`, and the dense `u`, `v` with their widths."""
        x, y, u, v = (side.double() for side in (x, y, u, v))
        self.left.append((x.mT @ x).cpu())
        self.right.append((y.mT @ y).cpu())
        self.cross = self.cross + ((x.mT @ u) @ (v.mT @ y)).sum(1).cpu()
        self.energy = self.energy + ((u.mT @ u) * (v.mT @ v)).sum((1, 2, 3)).cpu()

    def __add__(self, other: BilinearMoments) -> BilinearMoments:
        result = BilinearMoments()
        result.left, result.right = self.left + other.left, self.right + other.right
        result.cross, result.energy = self.cross + other.cross, self.energy + other.energy
        return result

    def system(self) -> BilinearSystem:
        """The least-squares problem of all samples so far."""
        assert isinstance(self.cross, torch.Tensor)
        assert isinstance(self.energy, torch.Tensor)
        return BilinearSystem(torch.cat(self.left, 1), torch.cat(self.right, 1), self.cross, self.energy)


class BilinearSystem:
    """Least squares for one matrix `[p, p']` per pair of sides; arguments as in `BilinearMoments`, joined."""

    def __init__(self, left: torch.Tensor, right: torch.Tensor, cross: torch.Tensor, energy: torch.Tensor) -> None:
        self.left, self.right, self.cross, self.energy = left, right, cross, energy
        self.samples = left.shape[1]

    @cached_property
    def normal(self) -> torch.Tensor | None:
        """The operator as matrices, `[pairs, p x p', p x p']`, where they are small."""
        p, other = self.left.shape[-1], self.right.shape[-1]
        if p * other > DIRECT:
            return None
        products = self.left.flatten(2).mT @ self.right.flatten(2)
        return products.unflatten(1, (p, p)).unflatten(3, (other, other)).transpose(2, 3).flatten(3, 4).flatten(1, 2)

    def applied(self, matrix: Matrices) -> Matrices:
        """`sum_n X^T X A Y^T Y`, two products of matrices per pair."""
        if self.normal is not None:
            return (self.normal @ matrix.flatten(1)[..., None]).reshape(matrix.shape)
        pairs, samples, p, other = *self.left.shape[:3], self.right.shape[-1]
        inner = (self.left.reshape(pairs, samples * p, p) @ matrix).reshape(pairs, samples, p, other)
        return inner.transpose(1, 2).reshape(pairs, p, samples * other) @ self.right.reshape(pairs, samples * other, other)

    def error(self, matrix: Matrices) -> torch.Tensor:
        """Squared error of the inner products, summed over samples, `[pairs]`."""
        return self.energy - 2 * (matrix * self.cross).sum((1, 2)) + (matrix * self.applied(matrix)).sum((1, 2))

    def solve(self, prior: Matrices, ratio: float, start: Matrices | None = None, tolerance: float = 1e-7) -> Matrices:
        """The best matrices with a ridge of `ratio` times the operator's mean diagonal.

        Args:
            prior: what the ridge pulls to, `[pairs, p, p']`.
            start: where to begin; the prior by default.
            tolerance: what is left of the equations' residual, as a share of the prior's.
        """
        traces = (side.diagonal(dim1=-2, dim2=-1).mean(-1) for side in (self.left, self.right))
        lam = (max(ratio, 1e-12) * torch.stack(tuple(traces)).prod(0).sum(1)).clamp_min(1e-30)[:, None, None]
        residual = self.cross - self.applied(prior)
        if self.normal is not None:
            damped = self.normal + lam * torch.eye(self.normal.shape[-1], dtype=torch.float64)
            return prior + torch.linalg.solve(damped, residual.flatten(1)).reshape(prior.shape)
        goal = tolerance**2 * _inner(residual, residual)
        right = residual if start is None else self.cross - self.applied(start) - lam * (start - prior)
        found = _conjugate_gradients(lambda a: self.applied(a) + lam * a, right, lambda r: self._preconditioned(r, lam), goal)
        return (prior if start is None else start) + found

    @cached_property
    def pooled(self) -> tuple[tuple[torch.Tensor, torch.Tensor], ...]:
        """Eigenvalues and eigenvectors of `sum_n X^T X` and of `sum_n Y^T Y`."""
        return tuple(tuple(torch.linalg.eigh(side.sum(1))) for side in (self.left, self.right))

    def _preconditioned(self, residual: Matrices, lam: torch.Tensor) -> Matrices:
        """Solved for the pooled operator, `(sum_n X^T X) A (sum_n Y^T Y) / samples`."""
        (a, left), (b, right) = self.pooled
        values = a.clamp_min(0)[:, :, None] * b.clamp_min(0)[:, None, :] / self.samples + lam
        return left @ ((left.mT @ residual @ right) / values) @ right.mT


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

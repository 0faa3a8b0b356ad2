"""Slices and concatenations."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from optin_fx.testing.patterns.pattern import Hidden, pattern, rows, tokens


@pattern(rows, {"a.weight:0": "free"})
class PartialSlice(Hidden):
    """Only the first eight channels are read; the others have no consumer, and may go as well."""

    last = 8

    def between(self, x: Tensor) -> Tensor:
        return x[:, :8].relu()


@pattern(rows, {"a.weight:0": (6,)})
class Strided(Hidden):
    """Every second channel: pairs are the units, of which the first is read."""

    last = 6

    def between(self, x: Tensor) -> Tensor:
        return x[:, ::2]


@pattern(rows, {"a.weight:0": "free", "b.weight:0": "free"})
class AddToSlice(Hidden):
    """Residual to the first channels only, the others pass: a cut of the wider width."""

    def __init__(self) -> None:
        super().__init__()
        self.b = nn.Linear(7, 8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        return self.out(torch.cat([y[:, :8] + self.b(x), y[:, 8:]], 1).relu())


@pattern(rows, {"a.weight:0": "free", "b.weight:0": "free"})
class InPlaceSlice(Hidden):
    """The same, in place on a view: the rest of the tensor must see it, or all of it is pinned."""

    def __init__(self) -> None:
        super().__init__()
        self.b = nn.Linear(7, 8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x).clone()
        y[:, :8] += self.b(x)
        return self.out(y.relu())


@pattern(rows, {"a.weight:0": "pinned"})
class SelectOne(nn.Module):
    """One channel by its number: it is an output, the others are read as a rest."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(7, 12)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        return x[:, 3] + x.sum(1)


@pattern(rows, {"a.weight:0": (4,), "gate.weight:0": (4,)})
class SplitThree(Hidden):
    """Three chunks, multiplied: one unit in three places of one layer."""

    last = 4

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(7, 4)

    def forward(self, x: Tensor) -> Tensor:
        a, b, c = self.a(x).chunk(3, -1)
        return self.out(a * b.sigmoid() + c * self.gate(x))


@pattern(rows, {"a.weight:0": (6,)})
class ChunkGate(Hidden):
    """GLU by hand: value and gate halves lose the same units."""

    last = 6

    def between(self, x: Tensor) -> Tensor:
        value, gate = x.chunk(2, -1)
        return value * F.silu(gate)


@pattern(rows, {"a.weight:0": (6,)})
class GLU(Hidden):
    """The same by F.glu."""

    last = 6

    def between(self, x: Tensor) -> Tensor:
        return F.glu(x, -1)


@pattern(rows, {"a.weight:0": "free", "b.weight:0": "free", "out.weight:1": "free", "c.weight:1": "free"})
class ConcatTwoConsumers(Hidden):
    """One concatenation read by two layers: each part's units go from both."""

    last = 20

    def __init__(self) -> None:
        super().__init__()
        self.b = nn.Linear(7, 8)
        self.c = nn.Linear(20, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.cat([self.a(x), self.b(x)], -1).relu()
        return self.out(y) + self.c(y.tanh())


@pattern(rows, {"a.weight:0": (12,), "out.weight:1": (12,)})
class ConcatTwice(Hidden):
    """The same tensor twice: one unit has two columns in `out`."""

    last = 24

    def between(self, x: Tensor) -> Tensor:
        return torch.cat([x, -x], -1).relu()


@pattern(rows, {"a.weight:0": "free", "out.weight:1": "part"})
class ConcatInput(Hidden):
    """A hidden width beside the model's own input."""

    last = 19

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.cat([self.a(x).relu(), x], -1))


@pattern(rows, {"a.weight:0": "free", "b.weight:0": "free", "c.weight:0": "free"})
class DifferentCuts(Hidden):
    """Two concatenations with different boundaries are added, 4 + 8 and 6 + 6: three pieces of 4, 2 and 6."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(7, 4), nn.Linear(7, 8)
        self.c, self.d = nn.Linear(7, 6), nn.Linear(7, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.out((torch.cat([self.a(x), self.b(x)], 1) + torch.cat([self.c(x), self.d(x)], 1)).relu())


@pattern(rows, {"a.weight:0": "free", "b.weight:0": "free"})
class SplitOtherwise(Hidden):
    """Concatenated as 12 + 8, split as 5 + 15."""

    last = 15

    def __init__(self) -> None:
        super().__init__()
        self.b = nn.Linear(7, 8)
        self.c = nn.Linear(5, 15)

    def forward(self, x: Tensor) -> Tensor:
        left, right = torch.cat([self.a(x), self.b(x)], 1).split([5, 15], 1)
        return self.out(self.c(left) + right)


@pattern(tokens, {"a.weight:0": "free", "cls:2": "free"})
class ConcatTokens(Hidden):
    """A class token in front of the sequence: concatenated along another dim, tied along this one."""

    def __init__(self) -> None:
        super().__init__()
        self.cls = nn.Parameter(torch.randn(1, 1, 12))

    def between(self, x: Tensor) -> Tensor:
        return torch.cat([self.cls.expand(x.shape[0], -1, -1), x], 1)[:, 0]


@pattern(rows, {"a.weight:0": "free", "b.weight:0": "free", "c.weight:0": "free"})
class StackUnbind(Hidden):
    """Three widths on a new dim, taken apart again: one axis."""

    def __init__(self) -> None:
        super().__init__()
        self.b, self.c = nn.Linear(7, 12), nn.Linear(7, 12)

    def forward(self, x: Tensor) -> Tensor:
        a, b, c = torch.stack([self.a(x), self.b(x), self.c(x)]).unbind(0)
        return self.out(a * b + c)


@pattern(rows, {"a.weight:0": "free", "b.weight:0": "free"})
class ReductionOverStack(Hidden):
    """Softmax over the branches, not over the channels (selective kernels)."""

    def __init__(self) -> None:
        super().__init__()
        self.b = nn.Linear(7, 12)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.stack([self.a(x), self.b(x)], 1)
        return self.out((y * y.softmax(1)).sum(1))

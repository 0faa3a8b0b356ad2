"""Repeats, expansions, outer products."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from optin_fx.testing.patterns.pattern import Hidden, pattern, rows, tokens


@pattern(rows, {"a.weight:0": (12,)})
class Repeat(Hidden):
    """Tiled: one unit is found once per tile."""

    last = 24

    def between(self, x: Tensor) -> Tensor:
        return x.repeat(1, 2)


@pattern(rows, {"a.weight:0": (12,)})
class RepeatInterleave(Hidden):
    """Each channel twice in a row."""

    last = 24

    def between(self, x: Tensor) -> Tensor:
        return x.repeat_interleave(2, -1)


@pattern(tokens, {"a.weight:0": (2, 6)})
class ExpandHeads(Hidden):
    """GQA's way: (2, 6) expands to (2, 3, 6) and flattens to 36; the copies are units of `out` only."""

    last = 36

    def between(self, x: Tensor) -> Tensor:
        b, t, _ = x.shape
        return x.view(b, t, 2, 1, 6).expand(b, t, 2, 3, 6).reshape(b, t, 36)


@pattern(rows, {"a.weight:0": "free", "b.weight:0": "pinned"})
class BroadcastOne(Hidden):
    """One channel gates twelve: its extent of one is no width."""

    def __init__(self) -> None:
        super().__init__()
        self.b = nn.Linear(7, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.a(x) * self.b(x).sigmoid())


@pattern(rows, {"a.weight:0": "free", "b.weight:0": "free"})
class OuterProduct(Hidden):
    """Two widths multiply into a matrix that is flattened: both are free, `out` has their grid."""

    last = 12

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(7, 4), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out((self.a(x)[:, :, None] * self.b(x)[:, None, :]).flatten(1))


@pattern(tokens, {"a.weight:0": "free", "b.weight:0": "free"})
class Gram(Hidden):
    """Features against features, flattened: the width is both factors of one dim."""

    last = 12 * 12

    def __init__(self) -> None:
        super().__init__()
        self.b = nn.Linear(7, 12)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.bmm(self.a(x).transpose(1, 2), self.b(x)).flatten(1))

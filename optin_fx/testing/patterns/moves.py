"""Channels that change places."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from optin_fx.testing.patterns.pattern import ConvHidden, Hidden, image, pattern, rows


@pattern(rows, {"a.weight:0": "pinned"})
class Flip(Hidden):
    """Mirrored: channel i reads as channel 11 - i, and the same width would have to be kept both ways."""

    def between(self, x: Tensor) -> Tensor:
        return x + x.flip(-1)


@pattern(rows, {"a.weight:0": "pinned"})
class Roll(Hidden):
    """Neighbours meet: x and its shifted self are added."""

    def between(self, x: Tensor) -> Tensor:
        return x + x.roll(1, -1)


@pattern(image, {"a.weight:0": "free"})
class RollOverSpace(ConvHidden):
    """Shifted windows move pixels, not channels."""

    def between(self, x: Tensor) -> Tensor:
        return x.relu().roll((1, 2), (2, 3))


@pattern(image, {"a.weight:0": (2, 6)})
class ChannelShuffle(ConvHidden):
    """view (2, 6), transpose, flatten: both factors are units, and they come out in the other order."""

    def between(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        return x.view(b, 2, c // 2, h, w).transpose(1, 2).reshape(b, c, h, w).relu()


@pattern(image, {"a.weight:0": (2, 3, 4)})
class DoubleShuffle(ConvHidden):
    """Two shuffles with different factors, 24 = 2 x 12 = 3 x 8: the common refinement has three factors."""

    middle = last = 24

    def between(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        x = x.view(b, 2, c // 2, h, w).transpose(1, 2).reshape(b, c, h, w)
        return x.reshape(b, 3, c // 3, h, w).transpose(1, 2).reshape(b, c, h, w)


@pattern(rows, {"a.weight:0": "free", "b.weight:0": "free"})
class Interleave(Hidden):
    """stack and flatten: channels of two layers alternate, so they go in pairs."""

    last = 24

    def __init__(self) -> None:
        super().__init__()
        self.b = nn.Linear(7, 12)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.stack([self.a(x), self.b(x)], -1).flatten(-2).relu())


@pattern(rows, {"a.weight:0": "pinned"})
class IndexConstant(Hidden):
    """Gathered by a table of indices in a buffer; the numbers in it are channels."""

    order: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("order", torch.randperm(12))

    def between(self, x: Tensor) -> Tensor:
        return x[:, self.order]


@pattern(rows, {"a.weight:0": "pinned"})
class IndexSelect(Hidden):
    """The same by index_select, with fewer and repeated channels."""

    last = 4

    def between(self, x: Tensor) -> Tensor:
        return x.index_select(1, torch.tensor([0, 3, 3, 11]))


@pattern(rows, {"a.weight:0": "pinned"})
class Gather(Hidden):
    """Indices that depend on the values."""

    def between(self, x: Tensor) -> Tensor:
        return x.gather(1, x.argsort(1))


@pattern(rows, {"a.weight:0": "pinned"})
class Scatter(Hidden):
    """Channels written to computed places."""

    def between(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x).scatter(1, x.argsort(1), x)

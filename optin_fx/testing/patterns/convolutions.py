"""Convolutions, gates, residuals, pooling."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from optin_fx.testing.patterns.pattern import ConvHidden, Hidden, image, pattern, rows, tokens, wave


@pattern(image, {"a.weight:0": "free", "b.weight:0": "free"})
class Depthwise(ConvHidden):
    """One filter per channel: `groups` follows the width."""

    def __init__(self) -> None:
        super().__init__()
        self.b = nn.Conv2d(12, 12, 3, padding=1, groups=12)

    def between(self, x: Tensor) -> Tensor:
        return self.b(x).relu()


@pattern(image, {"a.weight:0": "free", "b.weight:0": "free"})
class DepthMultiplier(ConvHidden):
    """Two filters per channel."""

    last = 24

    def __init__(self) -> None:
        super().__init__()
        self.b = nn.Conv2d(12, 24, 3, padding=1, groups=12)

    def between(self, x: Tensor) -> Tensor:
        return self.b(x).relu()


@pattern(image, {"a.weight:0": (3, 4), "b.weight:0": (3, 5)})
class Grouped(ConvHidden):
    """Whole groups, inputs per group, outputs per group."""

    last = 15

    def __init__(self) -> None:
        super().__init__()
        self.b = nn.Conv2d(12, 15, 3, padding=1, groups=3)

    def between(self, x: Tensor) -> Tensor:
        return self.b(x).relu()


@pattern(image, {"a.weight:0": (2, 6), "b.weight:0": (2, 2, 3)})
class GroupedTwice(ConvHidden):
    """Groups of 2, then of 4, on one width of 12: the common refinement is (2 2 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.b = nn.Conv2d(12, 12, 1, groups=2)
        self.c = nn.Conv2d(12, 12, 1, groups=4)

    def between(self, x: Tensor) -> Tensor:
        return self.c(self.b(x).relu()).relu()


@pattern(image, {"b.weight:0": "pinned", "c.weight:0": (4,)})
class GroupsThatClash(ConvHidden):
    """Groups of 2, then of 3: (2 6) and (3 4) have no common refinement, so the width between them stays; outputs
    of one group of the second do not read it."""

    def __init__(self) -> None:
        super().__init__()
        self.b = nn.Conv2d(12, 12, 1, groups=2)
        self.c = nn.Conv2d(12, 12, 1, groups=3)

    def between(self, x: Tensor) -> Tensor:
        return self.c(self.b(x).relu()).relu()


@pattern(tokens, {"a.weight:0": "free", "b.weight:0": (3,)})
class DealtAnew(nn.Module):
    """A reshape (3, 4) to (4, 3) over positions and channels mixes both; the heads beside them pass."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = nn.Linear(7, 12), nn.Linear(7, 12), nn.Linear(15, 5)

    def forward(self, x: Tensor) -> Tensor:
        b = self.b(x).view(x.shape[0], 5, 3, 4).transpose(1, 2)
        b = b.reshape(x.shape[0], 3, 4, 5)
        return self.out(self.a(x).sum(-1, keepdim=True).sum(1, keepdim=True) + b.permute(0, 2, 1, 3).flatten(2))


@pattern(image, {"a.weight:0": "free", "b.weight:1": "free"})
class Transposed(ConvHidden):
    """Weights of a transposed convolution are (in, out)."""

    def __init__(self) -> None:
        super().__init__()
        self.b = nn.ConvTranspose2d(12, 12, 2, 2)

    def between(self, x: Tensor) -> Tensor:
        return self.b(x).relu()


@pattern(image, {"a.weight:0": (3, 4), "b.weight:1": (5,)})
class TransposedGrouped(ConvHidden):
    """The same in three groups: the weight's second dim holds the outputs of one group."""

    last = 15

    def __init__(self) -> None:
        super().__init__()
        self.b = nn.ConvTranspose2d(12, 15, 2, 2, groups=3)

    def between(self, x: Tensor) -> Tensor:
        return self.b(x).relu()


@pattern(wave, {"a.weight:0": "free", "b.weight:0": "free"})
class Dilated(nn.Module):
    """Conv1d with a dilation, and padding by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = nn.Conv1d(3, 12, 3), nn.Conv1d(12, 10, 2, dilation=3), nn.Conv1d(10, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.b(F.pad(self.a(x), (3, 0))).relu())


@pattern(image, {"a.weight:0": "free", "squeeze.weight:0": "free"})
class SqueezeExcite(ConvHidden):
    """A gate computed from the pooled channels, on themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.squeeze, self.excite = nn.Conv2d(12, 4, 1), nn.Conv2d(4, 12, 1)

    def between(self, x: Tensor) -> Tensor:
        return x * self.excite(self.squeeze(x.mean((2, 3), keepdim=True)).relu()).sigmoid()


@pattern(image, {"a.weight:0": "pinned"})
class ConvOverChannels(ConvHidden):
    """ECA: a conv1d slides over the channels, which are its positions."""

    def __init__(self) -> None:
        super().__init__()
        self.b = nn.Conv1d(1, 1, 3, padding=1)

    def between(self, x: Tensor) -> Tensor:
        gate = self.b(x.mean((2, 3))[:, None])[:, 0]
        return x * gate.sigmoid()[:, :, None, None]


@pattern(image, {"a.weight:0": "free", "b.weight:0": "free", "short.weight:0": "free"})
class ResidualProjection(ConvHidden):
    """A residual with a 1x1 projection: two producers of one width."""

    def __init__(self) -> None:
        super().__init__()
        self.b, self.short = nn.Conv2d(12, 10, 3, padding=1), nn.Conv2d(12, 10, 1)
        self.out = nn.Conv2d(10, 5, 1)

    def between(self, x: Tensor) -> Tensor:
        return (self.b(x.relu()) + self.short(x)).relu()


@pattern(rows, {"b.weight:0": "free"})
class ResidualToInput(nn.Module):
    """A residual around the model's input: the stream stays, the inner width is free."""

    def __init__(self) -> None:
        super().__init__()
        self.b, self.c, self.out = nn.Linear(7, 12), nn.Linear(12, 7), nn.Linear(7, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(x + self.c(self.b(x).relu()))


@pattern(image, {"a.weight:0": "free"})
class Pooling(ConvHidden):
    """Pools, upsampling, adaptive pools: space only."""

    def between(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(x, 2) + F.avg_pool2d(x, 2) + F.adaptive_avg_pool2d(x, 4)
        return F.interpolate(x, scale_factor=2, mode="bilinear")


@pattern(image, {"a.weight:0": "pinned"})
class LocalResponseNorm(ConvHidden):
    """Divides by neighbouring channels."""

    def between(self, x: Tensor) -> Tensor:
        return F.local_response_norm(x, 3)


@pattern(rows, {"a.weight:0": "pinned"})
class PoolOverChannels(Hidden):
    """Maxout: pooling with channels as positions."""

    last = 6

    def between(self, x: Tensor) -> Tensor:
        return F.max_pool1d(x[:, None], 2)[:, 0]

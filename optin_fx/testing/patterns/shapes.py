"""Reshapes, patches, embeddings, masks, tensors made from nothing."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from optin_fx.testing.patterns.pattern import ConvHidden, Hidden, image, pattern, rows, tokens


@pattern(image, {"a.weight:0": (6,), "out.weight:1": "part"})
class FlattenSpace(nn.Module):
    """(c, h, w) flatten to one dim: a channel is a block of 16 columns."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 6, 3, 2, 1)
        self.out = nn.Linear(96, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.a(x).relu().flatten(1))


@pattern(image, {"a.weight:0": (6,), "out.weight:1": "part"})
class FlattenNHWC(nn.Module):
    """(h, w, c) flatten: a channel is every sixth column."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 6, 3, 2, 1)
        self.out = nn.Linear(96, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.a(x).relu().permute(0, 2, 3, 1).flatten(1))


@pattern(tokens, {"a.weight:0": "free", "out.weight:1": "part"})
class FlattenTokens(Hidden):
    """(tokens, channels) flatten."""

    last = 60

    def between(self, x: Tensor) -> Tensor:
        return x.relu().flatten(1)


@pattern(rows, {"a.weight:0": (3, 4)})
class ChannelsToBatch(Hidden):
    """Channels fold into the batch: (b 12) is (b 3 4), of which 3 is summed and 4 is read by `out`."""

    last = 4

    def between(self, x: Tensor) -> Tensor:
        return x.reshape(-1, 4).relu().reshape(-1, 3, 4).sum(1)


@pattern(image, {"a.weight:0": (3,)})
class PixelShuffle(ConvHidden):
    """12 channels become 3 at twice the resolution: four channels go at once."""

    last = 3

    def between(self, x: Tensor) -> Tensor:
        return F.pixel_shuffle(x, 2).relu()


@pattern(image, {"a.weight:0": "free", "out.weight:1": "part"})
class PixelUnshuffle(ConvHidden):
    """3 channels become 12 at half the resolution."""

    middle = 3
    last = 12

    def between(self, x: Tensor) -> Tensor:
        return F.pixel_unshuffle(x, 2).relu()


@pattern(image, {"a.weight:0": "free", "out.weight:1": "part"})
class Unfold(nn.Module):
    """im2col: (channel, kernel row, kernel column) in one dim, channel outermost."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 6, 3, padding=1)
        self.out = nn.Linear(54, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.unfold(self.a(x), 3, padding=1).mT)


@pattern(image, {"a.weight:0": (6,)})
class Fold(nn.Module):
    """col2im: the way back."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 24, 2, 2)
        self.out = nn.Conv2d(6, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.fold(self.a(x).flatten(2), (8, 8), 2, stride=2))


@pattern(image, {"a.weight:0": (6,), "out.weight:1": (6,)})
class PatchMerging(nn.Module):
    """Four strided slices of an NHWC map, concatenated: Swin's downsampling."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 6, 3, padding=1)
        self.out = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x).permute(0, 2, 3, 1)
        return self.out(torch.cat([x[:, i::2, j::2] for i in (0, 1) for j in (0, 1)], -1))


@pattern(tokens, {"a.weight:0": "free", "table:1": "free"})
class LearnedPositions(Hidden):
    """A table of positions of which the first five are read."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(9, 12))

    def between(self, x: Tensor) -> Tensor:
        return (x + self.table[: x.shape[1]]).relu()


@pattern(lambda: (torch.randint(0, 11, (2, 4)),), {"table.weight:1": "free", "table.weight:0": "pinned"})
class Embedding(nn.Module):
    """Rows are words, which the input names; columns are a width."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(11, 12)
        self.out = nn.Linear(12, 5)

    def forward(self, ids: Tensor) -> Tensor:
        return self.out(self.table(ids).relu())


@pattern(lambda: (torch.randint(0, 11, (2, 4)),), {"table.weight:1": "free", "table.weight:0": "pinned"})
class EmbeddingBag(nn.Module):
    """Words are averaged, columns pass."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.EmbeddingBag(11, 12, mode="mean")
        self.out = nn.Linear(12, 5)

    def forward(self, ids: Tensor) -> Tensor:
        return self.out(self.table(ids).relu())


@pattern(rows, {"a.weight:0": "free"})
class Mask(Hidden):
    """A condition computed entry by entry."""

    def between(self, x: Tensor) -> Tensor:
        return torch.where(x > 0, x, 0.1 * x).masked_fill(x > 1, 1.0).clamp(-1, 1)


@pattern(rows, {"a.weight:0": "free"})
class MaskConstant(Hidden):
    """A mask over channels in a buffer: cut like any tensor."""

    keep: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("keep", torch.arange(12) % 3 != 0)

    def between(self, x: Tensor) -> Tensor:
        return x.masked_fill(~self.keep, 0.5)


@pattern(rows, {"a.weight:0": "pinned"})
class PositionOfChannel(Hidden):
    """A ramp over the channels made by arange: its numbers are positions, and would start anew."""

    def between(self, x: Tensor) -> Tensor:
        return x * torch.arange(12, dtype=x.dtype)


@pattern(rows, {"a.weight:0": "free"})
class NewTensors(Hidden):
    """Zeros, ones and full tensors of a written width: the size follows."""

    def between(self, x: Tensor) -> Tensor:
        return x * torch.ones(12) + x.new_zeros(12) + torch.full((2, 12), 0.5)


@pattern(rows, {"a.weight:0": "free", "out.weight:1": "part"})
class PadChannels(Hidden):
    """Zeros appended to the channels (the parameter-free shortcut of early ResNets)."""

    last = 15

    def between(self, x: Tensor) -> Tensor:
        return F.pad(x, (1, 2)).relu()

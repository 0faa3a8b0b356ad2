"""Widths that pass through layers, norms and activations."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from optin_fx.testing.patterns.pattern import ConvHidden, Hidden, image, pattern, rows, tokens


@pattern(rows, {"a.weight:0": "free", "out.weight:1": "free", "a.weight:1": "pinned", "out.weight:0": "pinned"})
class Plain(Hidden):
    """A hidden width; inputs and outputs of the model stay."""


@pattern(rows, {"a.weight:0": "free", "scale:0": "free", "shift:0": "free"})
class Affine(Hidden):
    """A gain and a shift per channel, as loose parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.randn(12))
        self.shift = nn.Parameter(torch.randn(12))

    def between(self, x: Tensor) -> Tensor:
        return (x * self.scale + self.shift).relu()


@pattern(rows, {"a.weight:0": "free", "table:1": "free"})
class BroadcastConstant(Hidden):
    """A buffer with a leading one, and a scalar: nothing to prune on the ones."""

    table: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.randn(1, 12))

    def between(self, x: Tensor) -> Tensor:
        return x * self.table + torch.tensor(0.5)


@pattern(image, {"a.weight:0": "free", "norm.weight:0": "free", "norm.running_mean:0": "free"})
class BatchNorm(ConvHidden):
    """Each channel on its own in eval mode; statistics are cut with it."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(12)

    def between(self, x: Tensor) -> Tensor:
        return self.norm(x).relu()


@pattern(image, {"a.weight:0": "free", "norm.weight:0": "free"})
class InstanceNorm(ConvHidden):
    """Normalises over space only."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.InstanceNorm2d(12, affine=True)

    def between(self, x: Tensor) -> Tensor:
        return self.norm(x).relu()


@pattern(image, {"a.weight:0": (3,), "norm.weight:0": (3,)})
class GroupNorm(ConvHidden):
    """Channels of a group see each other, groups do not: three units of four channels."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(3, 12)

    def between(self, x: Tensor) -> Tensor:
        return self.norm(x).relu()


@pattern(rows, {"a.weight:0": "pinned"})
class LayerNorm(Hidden):
    """Every channel sees every other."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(12)

    def between(self, x: Tensor) -> Tensor:
        return self.norm(x)


@pattern(tokens, {"a.weight:0": (3,)})
class LayerNormPerHead(Hidden):
    """A norm over the last dim of (heads, dims): heads are free, their dims are not."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4)

    def between(self, x: Tensor) -> Tensor:
        return self.norm(x.unflatten(-1, (3, 4))).flatten(-2)


@pattern(rows, {"a.weight:0": "pinned"})
class Softmax(Hidden):
    """A probability over channels."""

    def between(self, x: Tensor) -> Tensor:
        return x.softmax(-1)


@pattern(rows, {"a.weight:0": "free"})
class Normalize(Hidden):
    """Unit length over channels: what is zero adds nothing to a length."""

    def between(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=-1)


@pattern(rows, {"a.weight:0": "free"})
class Dropout(Hidden):
    """Nothing in eval mode."""

    def between(self, x: Tensor) -> Tensor:
        return F.dropout(F.gelu(x), 0.5, self.training)


@pattern(image, {"a.weight:0": "free", "act.weight:0": "free"})
class PReLU(ConvHidden):
    """One slope per channel."""

    def __init__(self) -> None:
        super().__init__()
        self.act = nn.PReLU(12)

    def between(self, x: Tensor) -> Tensor:
        return self.act(x)

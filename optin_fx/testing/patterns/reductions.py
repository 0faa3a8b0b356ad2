"""Reductions over channels."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from optin_fx.testing.patterns.pattern import Hidden, pattern, rows, tokens


@pattern(rows, {"a.weight:0": "free", "b.weight:0": "free"})
class SumOverChannels(Hidden):
    """A sum is a contraction with ones: a removed channel adds nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.b = nn.Linear(7, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.a(x).relu()) + self.b(x).relu().sum(-1, keepdim=True)


@pattern(rows, {"a.weight:0": "free"})
class MeanOverChannels(nn.Module):
    """The mean goes on to divide by the dense width."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(7, 12)

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x).relu().mean(-1)


@pattern(rows, {"a.weight:0": "pinned"})
class MaxOverChannels(nn.Module):
    """A masked channel is a zero among the candidates, a removed one is not."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(7, 12)

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x).amax(-1)


@pattern(rows, {"a.weight:0": "pinned"})
class MaxWithIndices(nn.Module):
    """As above, and the index has a meaning."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(7, 12)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        values, places = self.a(x).max(-1)
        return values, places


@pattern(rows, {"a.weight:0": "pinned"})
class ArgMax(nn.Module):
    """The answer is a channel's number."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(7, 12)

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x).argmax(-1)


@pattern(rows, {"a.weight:0": "pinned"})
class Sort(Hidden):
    """Channels change places by their values."""

    def between(self, x: Tensor) -> Tensor:
        return x.sort(-1).values


@pattern(rows, {"a.weight:0": (12,)})
class TopK(Hidden):
    """The four largest of the channels that are left, of which there must be four."""

    last = 4

    def between(self, x: Tensor) -> Tensor:
        return x.topk(4, -1).values


@pattern(rows, {"a.weight:0": (12,)})
class CumulativeSum(Hidden):
    """Each channel sees those before it, to which one that is gone adds nothing."""

    def between(self, x: Tensor) -> Tensor:
        return x.cumsum(-1)


@pattern(rows, {"a.weight:0": "pinned"})
class Variance(nn.Module):
    """A statistic over channels."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(7, 12)

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x).var(-1)


@pattern(tokens, {"a.weight:0": "free"})
class MeanOverTokens(Hidden):
    """The reduced dim is not the channels'."""

    def between(self, x: Tensor) -> Tensor:
        return x.relu().mean(1)


@pattern(rows, {"a.weight:0": "free"})
class Distance(nn.Module):
    """A Euclidean distance to prototypes: the norm of a difference over channels."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(7, 12)
        self.prototypes = nn.Parameter(torch.randn(5, 12))

    def forward(self, x: Tensor) -> Tensor:
        return torch.linalg.vector_norm(self.a(x)[:, None] - self.prototypes, dim=-1)

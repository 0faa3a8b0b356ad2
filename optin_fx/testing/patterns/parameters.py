"""Parameters that are shared, computed or recurrent, and the edges of a program."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from optin_fx.testing.patterns.pattern import ConvHidden, Hidden, image, pattern, rows, tokens


@pattern(rows, {"w:0": (7,), "w:1": "pinned"})
class TiedTranspose(nn.Module):
    """One matrix as encoder and as decoder."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(7, 7))

    def forward(self, x: Tensor) -> Tensor:
        return (x @ self.w.t()).relu() @ self.w


@pattern(rows, {"a.weight:0": (12,), "b.weight:0": (12,), "b.weight:1": (12,)})
class UsedTwice(Hidden):
    """One layer twice in a row: its inputs and outputs are one axis."""

    def __init__(self) -> None:
        super().__init__()
        self.b = nn.Linear(12, 12)

    def between(self, x: Tensor) -> Tensor:
        return self.b(self.b(x).relu()).relu()


@pattern(rows, {"a.weight:0": "free", "b.weight:0": "free"})
class SharedByTwoWidths(nn.Module):
    """One layer reads two tensors: they have one width."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.out = nn.Linear(7, 12), nn.Linear(7, 12), nn.Linear(12, 10), nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.c(self.a(x).relu()) * self.c(self.b(x).tanh()))


@pattern(rows, {"a.weight:0": (12,), "b.parametrizations.weight.original0:0": "free", "b.parametrizations.weight.original1:0": "free"})
class WeightNorm(Hidden):
    """Inputs of `b` see each other in the norm of its rows, which stays that of the whole rows; its outputs do not."""

    def __init__(self) -> None:
        super().__init__()
        self.b = nn.utils.parametrizations.weight_norm(nn.Linear(12, 10))
        self.out = nn.Linear(10, 5)

    def between(self, x: Tensor) -> Tensor:
        return self.b(x).relu()


@pattern(image, {"b.weight:0": "free", "a.weight:0": "free"})
class WeightStandardised(ConvHidden):
    """A weight made zero-mean per output filter before use: the mean goes on to divide by the dense number of inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.b = nn.Conv2d(12, 10, 3, padding=1)
        self.out = nn.Conv2d(10, 5, 1)

    def between(self, x: Tensor) -> Tensor:
        w = self.b.weight
        return F.conv2d(x, w - w.mean((1, 2, 3), keepdim=True), self.b.bias, padding=1).relu()


@pattern(rows, {"u:1": "free", "v:0": "free", "a.weight:0": "free"})
class LowRank(Hidden):
    """A weight computed as a product of two: the rank is a width as well."""

    def __init__(self) -> None:
        super().__init__()
        self.u, self.v = nn.Parameter(torch.randn(12, 4)), nn.Parameter(torch.randn(4, 12))

    def between(self, x: Tensor) -> Tensor:
        return F.linear(x, self.u @ self.v).relu()


@pattern(rows, {"a.weight:0": "free", "gain:0": "free"})
class ComputedBias(Hidden):
    """Half of a bias is a parameter, half a buffer of zeros (BEiT's qkv bias)."""

    zero: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.randn(6))
        self.register_buffer("zero", torch.zeros(6))

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.linear(x, self.a.weight, torch.cat([self.gain, self.zero])).relu())


@pattern(rows, {"experts:0": "pinned", "experts:1": (12,), "back:2": (12,), "router.weight:0": "pinned"})
class SoftExperts(nn.Module):
    """A mixture of experts with all of them weighted: hidden units are free; experts share a softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(7, 4)
        self.experts = nn.Parameter(torch.randn(4, 12, 7))
        self.back = nn.Parameter(torch.randn(4, 5, 12))

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.einsum("bi,eoi->beo", x, self.experts).relu()
        return torch.einsum("beo,ejo,be->bj", hidden, self.back, self.router(x).softmax(-1))


@pattern(tokens, {"a.weight:0": "free"})
class LSTM(Hidden):
    """Four gates in one matrix, and a recurrence: the state's width is pinned, what comes in is free."""

    last = 10

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(12, 10, batch_first=True)

    def between(self, x: Tensor) -> Tensor:
        return self.rnn(x)[0]


@pattern(tokens, {"a.weight:0": "free"})
class GRU(Hidden):
    """The same with three gates."""

    last = 10

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(12, 10, batch_first=True)

    def between(self, x: Tensor) -> Tensor:
        return self.rnn(x)[0]


@pattern(tokens, {"a.weight:0": "free", "w:0": "free"})
class UnrolledRecurrence(nn.Module):
    """A recurrence written as a loop: the state's width is read and written by one matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.out = nn.Linear(7, 12), nn.Linear(12, 5)
        self.w = nn.Parameter(torch.randn(12, 12) / 4)

    def forward(self, x: Tensor) -> Tensor:
        state = x.new_zeros(2, 12)
        for step in self.a(x).unbind(1):
            state = (step + state @ self.w).tanh()
        return self.out(state)


@torch.library.custom_op("optin_patterns::twice", mutates_args=())
def twice(x: Tensor) -> Tensor:
    """A user's op, which nobody declared."""
    return 2 * x


@twice.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


@pattern(rows, {"a.weight:0": "pinned"})
class CustomOp(Hidden):
    """Unknown is never a guess: pinned."""

    def between(self, x: Tensor) -> Tensor:
        return torch.ops.optin_patterns.twice(x)


@pattern(rows, {"a.weight:0": "pinned"})
class MultipleOutputs(Hidden):
    """A hidden tensor is an output as well: its width is part of the contract."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
        hidden = self.a(x)
        return {"hidden": hidden, "logits": self.out(hidden.relu())}


@pattern(rows, {})
class DeadBranch(Hidden):
    """A branch that nobody reads, and an in-place op."""

    def between(self, x: Tensor) -> Tensor:
        _ = x.softmax(-1) @ torch.ones(12, 3)
        return x.clone().relu_().add_(1).mul_(2)


@pattern(rows, {"a.weight:0": "free"})
class InPlaceCopy(Hidden):
    """A fresh tensor filled by copy_."""

    def between(self, x: Tensor) -> Tensor:
        y = torch.zeros(2, 12)
        y.copy_(x)
        return y.relu()


class StandardConv(nn.Conv2d):
    """A filter of zero mean and unit variance, as BiT's."""

    def weights(self) -> Tensor:
        rows = self.weight.reshape(1, self.out_channels, -1)
        return F.batch_norm(rows, None, None, training=True, momentum=0.0).reshape_as(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weights(), self.bias, self.stride, self.padding)


class VarianceConv(StandardConv):
    """The same, written out."""

    def weights(self) -> Tensor:
        variance, mean = torch.var_mean(self.weight, (1, 2, 3), keepdim=True, correction=0)
        return (self.weight - mean) / (variance + 1e-5).sqrt()


@pattern(image, {"a.weight:0": (12,), "b.weight:0": (10,), "b.weight:1": (12,)})
class StandardisedFilters(ConvHidden):
    """Inputs that go leave the statistics of the filters that read them as they were."""

    conv: type[StandardConv] = StandardConv

    def __init__(self) -> None:
        super().__init__()
        self.b = self.conv(12, 10, 3, padding=1)
        self.out = nn.Conv2d(10, 5, 1)

    def between(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.b(x)).relu()


@pattern(image, {"a.weight:0": (12,), "b.weight:0": (10,), "b.weight:1": (12,)})
class StandardisedByHand(StandardisedFilters):
    """The same with the variance and the mean of each filter written out."""

    conv = VarianceConv


@pattern(rows, {"a.weight:0": "pinned"})
class StandardisedByActivations(Hidden):
    """Statistics of what is computed from the input change with it, and count every entry."""

    def between(self, x: Tensor) -> Tensor:
        variance, mean = torch.var_mean(x, -1, keepdim=True)
        return (x - mean) / (variance + 1e-5).sqrt()

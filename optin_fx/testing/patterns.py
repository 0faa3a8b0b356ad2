"""Small patterns: modules of a few lines, each a way in which the bookkeeping of channels goes wrong.

Each says what becomes of its axes, in a form that a test checks: for `"fc1.weight:0"` (a parameter and a dim of it) either

* `"free"`: all its units may go, or `"pinned"`: none may, or `"part"`: of a concatenation, some may;
* a tuple of numbers: free, and these are the numbers of units of its groups, ascending (`(3, 10)`: heads and dims).

The docstring says why. Whatever the outcome, sliced must equal masked under every plan. The last layer is called `out`; its
output is the model's and stays. Seven features come in; widths are chosen to be confusable (6 = 2 x 3 = 3 x 2).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from optin_fx.testing.zoo.entry import randomise

Outcome = str | tuple[int, ...]
M = TypeVar("M", bound=type[nn.Module])


@dataclass(frozen=True)
class Pattern:
    """A small module with its inputs and what is expected of it.

    Attributes:
        name: of the class, which is the pattern.
        make: the module's class.
        inputs: makes its positional inputs.
        expect: outcome by `parameter:dim`.
        why: the reason, for people.
    """

    name: str
    make: type[nn.Module]
    inputs: Callable[[], tuple[Any, ...]]
    expect: Mapping[str, Outcome]
    why: str

    def model(self, seed: int = 0) -> nn.Module:
        """The module in eval mode, with random parameters and statistics."""
        torch.manual_seed(seed)
        return randomise(self.make().eval(), seed)

    def example(self, seed: int = 0) -> tuple[Any, ...]:
        """Inputs that are the same on every call."""
        torch.manual_seed(seed + 1)
        return self.inputs()

    def __repr__(self) -> str:
        return f"Pattern({self.name})"


PATTERNS: list[Pattern] = []


def pattern(inputs: Callable[[], tuple[Any, ...]], **expect: Outcome) -> Callable[[M], M]:
    """Enter a module class into the list. Keywords write `a_weight_0` for `"a.weight:0"`, `w_0` for `"w:0"`."""

    def enter(cls: M) -> M:
        outcomes = {f"{key[:-2].replace('_', '.')}:{key[-1]}": outcome for key, outcome in expect.items()}
        PATTERNS.append(Pattern(cls.__name__, cls, inputs, outcomes, " ".join((cls.__doc__ or "").split())))
        return cls

    return enter


def get(name: str) -> Pattern:
    """The pattern of that name."""
    return next(p for p in PATTERNS if p.name == name)


def rows() -> tuple[Tensor, ...]:
    """Two rows of seven features."""
    return (torch.randn(2, 7),)


def tokens() -> tuple[Tensor, ...]:
    """Two sequences of five tokens of seven features."""
    return (torch.randn(2, 5, 7),)


def image() -> tuple[Tensor, ...]:
    """Two images of three channels."""
    return (torch.randn(2, 3, 8, 8),)


def wave() -> tuple[Tensor, ...]:
    """Two signals of three channels."""
    return (torch.randn(2, 3, 16),)


# -- widths that pass through ----------------------------------------------------------------------------------------


class Hidden(nn.Module):
    """`a`, something in between that a subclass writes, `out`."""

    middle = 12
    last = 12

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(7, self.middle)
        self.out = nn.Linear(self.last, 5)

    def between(self, x: Tensor) -> Tensor:
        return x.relu()

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.between(self.a(x)))


class ConvHidden(nn.Module):
    """The same with 3x3 convolutions."""

    middle = 12
    last = 12

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, self.middle, 3, padding=1)
        self.out = nn.Conv2d(self.last, 5, 3, padding=1)

    def between(self, x: Tensor) -> Tensor:
        return x.relu()

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.between(self.a(x)))


@pattern(rows, a_weight_0="free", out_weight_1="free", a_weight_1="pinned", out_weight_0="pinned")
class Plain(Hidden):
    """A hidden width; inputs and outputs of the model stay."""


@pattern(rows, a_weight_0="free", scale_0="free", shift_0="free")
class Affine(Hidden):
    """A gain and a shift per channel, as loose parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.randn(12))
        self.shift = nn.Parameter(torch.randn(12))

    def between(self, x: Tensor) -> Tensor:
        return (x * self.scale + self.shift).relu()


@pattern(rows, a_weight_0="free", table_1="free")
class BroadcastConstant(Hidden):
    """A buffer with a leading one, and a scalar: nothing to prune on the ones."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.randn(1, 12))

    def between(self, x: Tensor) -> Tensor:
        return x * self.table + torch.tensor(0.5)


@pattern(image, a_weight_0="free", norm_weight_0="free", norm_running_mean_0="free")
class BatchNorm(ConvHidden):
    """Each channel on its own in eval mode; statistics are cut with it."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(12)

    def between(self, x: Tensor) -> Tensor:
        return self.norm(x).relu()


# a keyword cannot say that a dot or an underscore is meant: running_mean is the only name with one
PATTERNS[-1] = Pattern(
    "BatchNorm", BatchNorm, image, {"a.weight:0": "free", "norm.weight:0": "free", "norm.running_mean:0": "free"}, PATTERNS[-1].why
)


@pattern(image, a_weight_0="free", norm_weight_0="free")
class InstanceNorm(ConvHidden):
    """Normalises over space only."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.InstanceNorm2d(12, affine=True)

    def between(self, x: Tensor) -> Tensor:
        return self.norm(x).relu()


@pattern(image, a_weight_0=(3,), norm_weight_0=(3,))
class GroupNorm(ConvHidden):
    """Channels of a group see each other, groups do not: three units of four channels."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(3, 12)

    def between(self, x: Tensor) -> Tensor:
        return self.norm(x).relu()


@pattern(rows, a_weight_0="pinned")
class LayerNorm(Hidden):
    """Every channel sees every other."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(12)

    def between(self, x: Tensor) -> Tensor:
        return self.norm(x)


@pattern(tokens, a_weight_0=(3,))
class LayerNormPerHead(Hidden):
    """A norm over the last dim of (heads, dims): heads are free, their dims are not."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4)

    def between(self, x: Tensor) -> Tensor:
        return self.norm(x.unflatten(-1, (3, 4))).flatten(-2)


@pattern(rows, a_weight_0="pinned")
class Softmax(Hidden):
    """A probability over channels."""

    def between(self, x: Tensor) -> Tensor:
        return x.softmax(-1)


@pattern(rows, a_weight_0="pinned")
class Normalize(Hidden):
    """Unit length over channels."""

    def between(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=-1)


@pattern(rows, a_weight_0="free")
class Dropout(Hidden):
    """Nothing in eval mode."""

    def between(self, x: Tensor) -> Tensor:
        return F.dropout(F.gelu(x), 0.5, self.training)


@pattern(image, a_weight_0="free", act_weight_0="free")
class PReLU(ConvHidden):
    """One slope per channel."""

    def __init__(self) -> None:
        super().__init__()
        self.act = nn.PReLU(12)

    def between(self, x: Tensor) -> Tensor:
        return self.act(x)


# -- reductions over channels -----------------------------------------------------------------------------------------


@pattern(rows, a_weight_0="free", b_weight_0="free")
class SumOverChannels(Hidden):
    """A sum is a contraction with ones: a removed channel adds nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.b = nn.Linear(7, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.a(x).relu()) + self.b(x).relu().sum(-1, keepdim=True)


@pattern(rows, a_weight_0="pinned")
class MeanOverChannels(nn.Module):
    """The mean divides by the width, which would change: to stay."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(7, 12)

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x).relu().mean(-1)


@pattern(rows, a_weight_0="pinned")
class MaxOverChannels(nn.Module):
    """A masked channel is a zero among the candidates, a removed one is not."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(7, 12)

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x).amax(-1)


@pattern(rows, a_weight_0="pinned")
class MaxWithIndices(nn.Module):
    """As above, and the index has a meaning."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(7, 12)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        values, places = self.a(x).max(-1)
        return values, places


@pattern(rows, a_weight_0="pinned")
class ArgMax(nn.Module):
    """The answer is a channel's number."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(7, 12)

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x).argmax(-1)


@pattern(rows, a_weight_0="pinned")
class Sort(Hidden):
    """Channels change places by their values."""

    def between(self, x: Tensor) -> Tensor:
        return x.sort(-1).values


@pattern(rows, a_weight_0="pinned")
class TopK(Hidden):
    """The four largest channels."""

    last = 4

    def between(self, x: Tensor) -> Tensor:
        return x.topk(4, -1).values


@pattern(rows, a_weight_0="pinned")
class CumulativeSum(Hidden):
    """Each channel sees those before it."""

    def between(self, x: Tensor) -> Tensor:
        return x.cumsum(-1)


@pattern(rows, a_weight_0="pinned")
class Variance(nn.Module):
    """A statistic over channels."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(7, 12)

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x).var(-1)


@pattern(tokens, a_weight_0="free")
class MeanOverTokens(Hidden):
    """The reduced dim is not the channels'."""

    def between(self, x: Tensor) -> Tensor:
        return x.relu().mean(1)


@pattern(rows, a_weight_0="pinned")
class Distance(nn.Module):
    """A Euclidean distance to prototypes: the norm of a difference over channels."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(7, 12)
        self.prototypes = nn.Parameter(torch.randn(5, 12))

    def forward(self, x: Tensor) -> Tensor:
        return torch.linalg.vector_norm(self.a(x)[:, None] - self.prototypes, dim=-1)


# -- moving channels ---------------------------------------------------------------------------------------------------


@pattern(rows, a_weight_0="pinned")
class Flip(Hidden):
    """Mirrored: channel i reads as channel 11 - i, and the same width would have to be kept both ways."""

    def between(self, x: Tensor) -> Tensor:
        return x + x.flip(-1)


@pattern(rows, a_weight_0="pinned")
class Roll(Hidden):
    """Neighbours meet: x and its shifted self are added."""

    def between(self, x: Tensor) -> Tensor:
        return x + x.roll(1, -1)


@pattern(image, a_weight_0="free")
class RollOverSpace(ConvHidden):
    """Shifted windows move pixels, not channels."""

    def between(self, x: Tensor) -> Tensor:
        return x.relu().roll((1, 2), (2, 3))


@pattern(image, a_weight_0=(2, 6))
class ChannelShuffle(ConvHidden):
    """view (2, 6), transpose, flatten: both factors are units, and they come out in the other order."""

    def between(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        return x.view(b, 2, c // 2, h, w).transpose(1, 2).reshape(b, c, h, w).relu()


@pattern(image, a_weight_0=(2, 3, 4))
class DoubleShuffle(ConvHidden):
    """Two shuffles with different factors, 24 = 2 x 12 = 3 x 8: the common refinement has three factors."""

    middle = last = 24

    def between(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        x = x.view(b, 2, c // 2, h, w).transpose(1, 2).reshape(b, c, h, w)
        return x.reshape(b, 3, c // 3, h, w).transpose(1, 2).reshape(b, c, h, w)


# the second view meets (12 2) = 24 as (3 8): 12 splits into (3 4), and 8 is (4 2)


@pattern(rows, a_weight_0="free", b_weight_0="free")
class Interleave(Hidden):
    """stack and flatten: channels of two layers alternate, so they go in pairs."""

    last = 24

    def __init__(self) -> None:
        super().__init__()
        self.b = nn.Linear(7, 12)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.stack([self.a(x), self.b(x)], -1).flatten(-2).relu())


@pattern(rows, a_weight_0="pinned")
class IndexConstant(Hidden):
    """Gathered by a table of indices in a buffer; the numbers in it are channels."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("order", torch.randperm(12))

    def between(self, x: Tensor) -> Tensor:
        return x[:, self.order]


@pattern(rows, a_weight_0="pinned")
class IndexSelect(Hidden):
    """The same by index_select, with fewer and repeated channels."""

    last = 4

    def between(self, x: Tensor) -> Tensor:
        return x.index_select(1, torch.tensor([0, 3, 3, 11]))


@pattern(rows, a_weight_0="pinned")
class Gather(Hidden):
    """Indices that depend on the values."""

    def between(self, x: Tensor) -> Tensor:
        return x.gather(1, x.argsort(1))


@pattern(rows, a_weight_0="pinned")
class Scatter(Hidden):
    """Channels written to computed places."""

    def between(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x).scatter(1, x.argsort(1), x)


# -- slices and concatenations -----------------------------------------------------------------------------------------


@pattern(rows, a_weight_0="free")
class PartialSlice(Hidden):
    """Only the first eight channels are read; the others have no consumer, and may go as well."""

    last = 8

    def between(self, x: Tensor) -> Tensor:
        return x[:, :8].relu()


@pattern(rows, a_weight_0=(6,))
class Strided(Hidden):
    """Every second channel: pairs are the units, of which the first is read."""

    last = 6

    def between(self, x: Tensor) -> Tensor:
        return x[:, ::2]


@pattern(rows, a_weight_0="free", b_weight_0="free")
class AddToSlice(Hidden):
    """Residual to the first channels only, the others pass: a cut of the wider width."""

    def __init__(self) -> None:
        super().__init__()
        self.b = nn.Linear(7, 8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        return self.out(torch.cat([y[:, :8] + self.b(x), y[:, 8:]], 1).relu())


@pattern(rows, a_weight_0="free", b_weight_0="free")
class InPlaceSlice(Hidden):
    """The same, in place on a view: the rest of the tensor must see it, or all of it is pinned."""

    def __init__(self) -> None:
        super().__init__()
        self.b = nn.Linear(7, 8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x).clone()
        y[:, :8] += self.b(x)
        return self.out(y.relu())


@pattern(rows, a_weight_0="pinned")
class SelectOne(nn.Module):
    """One channel by its number: it is an output, the others are read as a rest."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(7, 12)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        return x[:, 3] + x.sum(1)


@pattern(rows, a_weight_0=(4,), gate_weight_0=(4,))
class SplitThree(Hidden):
    """Three chunks, multiplied: one unit in three places of one layer."""

    last = 4

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(7, 4)

    def forward(self, x: Tensor) -> Tensor:
        a, b, c = self.a(x).chunk(3, -1)
        return self.out(a * b.sigmoid() + c * self.gate(x))


@pattern(rows, a_weight_0=(6,))
class ChunkGate(Hidden):
    """GLU by hand: value and gate halves lose the same units."""

    last = 6

    def between(self, x: Tensor) -> Tensor:
        value, gate = x.chunk(2, -1)
        return value * F.silu(gate)


@pattern(rows, a_weight_0=(6,))
class GLU(Hidden):
    """The same by F.glu."""

    last = 6

    def between(self, x: Tensor) -> Tensor:
        return F.glu(x, -1)


@pattern(rows, a_weight_0="free", b_weight_0="free", out_weight_1="free", c_weight_1="free")
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


@pattern(rows, a_weight_0=(12,), out_weight_1=(12,))
class ConcatTwice(Hidden):
    """The same tensor twice: one unit has two columns in `out`."""

    last = 24

    def between(self, x: Tensor) -> Tensor:
        return torch.cat([x, -x], -1).relu()


@pattern(rows, a_weight_0="free", out_weight_1="part")
class ConcatInput(Hidden):
    """A hidden width beside the model's own input."""

    last = 19

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.cat([self.a(x).relu(), x], -1))


@pattern(rows, a_weight_0="free", b_weight_0="free", c_weight_0="free")
class DifferentCuts(Hidden):
    """Two concatenations with different boundaries are added, 4 + 8 and 6 + 6: three pieces of 4, 2 and 6."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(7, 4), nn.Linear(7, 8)
        self.c, self.d = nn.Linear(7, 6), nn.Linear(7, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.out((torch.cat([self.a(x), self.b(x)], 1) + torch.cat([self.c(x), self.d(x)], 1)).relu())


@pattern(rows, a_weight_0="free", b_weight_0="free")
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


@pattern(tokens, a_weight_0="free", cls_2="free")
class ConcatTokens(Hidden):
    """A class token in front of the sequence: concatenated along another dim, tied along this one."""

    def __init__(self) -> None:
        super().__init__()
        self.cls = nn.Parameter(torch.randn(1, 1, 12))

    def between(self, x: Tensor) -> Tensor:
        return torch.cat([self.cls.expand(x.shape[0], -1, -1), x], 1)[:, 0]


@pattern(rows, a_weight_0="free", b_weight_0="free", c_weight_0="free")
class StackUnbind(Hidden):
    """Three widths on a new dim, taken apart again: one axis."""

    def __init__(self) -> None:
        super().__init__()
        self.b, self.c = nn.Linear(7, 12), nn.Linear(7, 12)

    def forward(self, x: Tensor) -> Tensor:
        a, b, c = torch.stack([self.a(x), self.b(x), self.c(x)]).unbind(0)
        return self.out(a * b + c)


@pattern(rows, a_weight_0="free", b_weight_0="free")
class ReductionOverStack(Hidden):
    """Softmax over the branches, not over the channels (selective kernels)."""

    def __init__(self) -> None:
        super().__init__()
        self.b = nn.Linear(7, 12)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.stack([self.a(x), self.b(x)], 1)
        return self.out((y * y.softmax(1)).sum(1))


# -- repeats and expansions --------------------------------------------------------------------------------------------


@pattern(rows, a_weight_0=(12,))
class Repeat(Hidden):
    """Tiled: one unit is found once per tile."""

    last = 24

    def between(self, x: Tensor) -> Tensor:
        return x.repeat(1, 2)


@pattern(rows, a_weight_0=(12,))
class RepeatInterleave(Hidden):
    """Each channel twice in a row."""

    last = 24

    def between(self, x: Tensor) -> Tensor:
        return x.repeat_interleave(2, -1)


@pattern(tokens, a_weight_0=(2, 6))
class ExpandHeads(Hidden):
    """GQA's way: (2, 6) expands to (2, 3, 6) and flattens to 36; the copies are units of `out` only."""

    last = 36

    def between(self, x: Tensor) -> Tensor:
        b, t, _ = x.shape
        return x.view(b, t, 2, 1, 6).expand(b, t, 2, 3, 6).reshape(b, t, 36)


@pattern(rows, a_weight_0="free", b_weight_0="pinned")
class BroadcastOne(Hidden):
    """One channel gates twelve: its extent of one is no width."""

    def __init__(self) -> None:
        super().__init__()
        self.b = nn.Linear(7, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.a(x) * self.b(x).sigmoid())


@pattern(rows, a_weight_0="free", b_weight_0="free")
class OuterProduct(Hidden):
    """Two widths multiply into a matrix that is flattened: both are free, `out` has their grid."""

    last = 12

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(7, 4), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out((self.a(x)[:, :, None] * self.b(x)[:, None, :]).flatten(1))


@pattern(tokens, a_weight_0="free", b_weight_0="free")
class Gram(Hidden):
    """Features against features, flattened: the width is both factors of one dim."""

    last = 12 * 12

    def __init__(self) -> None:
        super().__init__()
        self.b = nn.Linear(7, 12)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.bmm(self.a(x).transpose(1, 2), self.b(x)).flatten(1))


# -- products of matrices ----------------------------------------------------------------------------------------------


@pattern(rows, a_weight_0="free", w_0="free")
class MatmulParameter(Hidden):
    """A loose matrix and the `@` of Python."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(12, 12))

    def between(self, x: Tensor) -> Tensor:
        return (x @ self.w).relu()


@pattern(rows, a_weight_0="free", w_1="free", bias_0="free")
class AddMM(Hidden):
    """GPT-2's Conv1D: weights are (in, out)."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.bias = nn.Parameter(torch.randn(12, 12)), nn.Parameter(torch.randn(12))

    def between(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x, self.w).relu()


@pattern(tokens, a_weight_0="free", b_weight_0="free")
class BatchedAddMM(Hidden):
    """baddbmm: scores with a bias added, over the tokens; `a` and `b` share the contracted width."""

    last = 5

    def __init__(self) -> None:
        super().__init__()
        self.b = nn.Linear(7, 12)
        self.register_buffer("bias", torch.randn(5, 5))

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.baddbmm(self.bias.expand(2, 5, 5), self.a(x), self.b(x).transpose(1, 2)))


@pattern(tokens, w_0="pinned", w_1=(3,), w_2="free", v_2="free")
class EinsumSliced(nn.Module):
    """Einsum against a slice of a larger weight: heads 0 to 2 of four; the fourth is never read."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(7, 4, 6))
        self.v = nn.Parameter(torch.randn(3, 6, 5))

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("bthd,hdo->bto", torch.einsum("btc,chd->bthd", x, self.w[:, :3]), self.v)


# the output of `v` is the model's; the fourth head, alone in its slice, has nothing to shrink to
PATTERNS[-1] = Pattern(
    "EinsumSliced", EinsumSliced, tokens, {"w:0": "pinned", "w:1": (3,), "w:2": (6,), "v:0": (3,), "v:2": "pinned"}, PATTERNS[-1].why
)


@pattern(tokens, w_0="free", w_2="free")
class EinsumDiagonal(Hidden):
    """One matrix per group of channels (block-diagonal): groups and both widths are free."""

    last = 15

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(3, 4, 5))

    def between(self, x: Tensor) -> Tensor:
        return torch.einsum("btgi,gio->btgo", x.unflatten(-1, (3, 4)), self.w).flatten(-2)


@pattern(rows, a_weight_0="free", b_weight_0="free")
class Bilinear(Hidden):
    """x^T W y per output."""

    def __init__(self) -> None:
        super().__init__()
        self.b = nn.Linear(7, 10)
        self.form = nn.Bilinear(12, 10, 12)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.form(self.a(x), self.b(x)))


@pattern(tokens, qkv_weight_0=(3, 4, 4), out_weight_1=(3, 4))
class FusedAttention(nn.Module):
    """qkv by one layer: reshape (3, heads, dims), permute, unbind; qk-dims and v-dims are separate units."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(7, 36)
        self.out = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        b, t, _ = x.shape
        q, k, v = self.qkv(x).reshape(b, t, 3, 3, 4).permute(2, 0, 3, 1, 4).unbind(0)
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, t, 12))


# q, k and v share the width of one dim of the reshape, so that qk and v lose the same dims
PATTERNS[-1] = Pattern(
    "FusedAttention", FusedAttention, tokens, {"qkv.weight:0": (3, 4), "out.weight:1": (3, 4)}, PATTERNS[-1].why
)


@pattern(tokens, qk_weight_0=(3, 4), v_weight_0=(3, 5), out_weight_1=(3, 5))
class ManualAttention(nn.Module):
    """Scores by matmul with a written scale: qk-dims may go, the scale of the dense width stays."""

    def __init__(self) -> None:
        super().__init__()
        self.qk = nn.Linear(7, 24)
        self.v = nn.Linear(7, 15)
        self.out = nn.Linear(15, 5)

    def forward(self, x: Tensor) -> Tensor:
        b, t, _ = x.shape
        q, k = (y.view(b, t, 3, 4).transpose(1, 2) for y in self.qk(x).chunk(2, -1))
        v = self.v(x).view(b, t, 3, 5).transpose(1, 2)
        weights = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1)
        return self.out((weights @ v).transpose(1, 2).flatten(2))


@pattern(tokens, q_weight_0=(3, 5), k_weight_0=(3, 5))
class Rotary(nn.Module):
    """Rotary embedding of halves: dim i turns with dim i + 5, so five pairs per head."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(7, 30), nn.Linear(7, 30), nn.Linear(7, 12)
        self.out = nn.Linear(12, 5)
        angles = torch.arange(5.0)[:, None] * torch.rand(5)
        self.register_buffer("cos", torch.cat([angles, angles], -1).cos())
        self.register_buffer("sin", torch.cat([angles, angles], -1).sin())

    def turn(self, x: Tensor) -> Tensor:
        left, right = x.chunk(2, -1)
        return x * self.cos + torch.cat([-right, left], -1) * self.sin

    def forward(self, x: Tensor) -> Tensor:
        b, t, _ = x.shape
        q, k = (self.turn(y(x).view(b, t, 3, 10).transpose(1, 2)) for y in (self.q, self.k))
        v = self.v(x).view(b, t, 3, 4).transpose(1, 2)
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


@pattern(tokens, q_weight_0=(3, 5), k_weight_0=(3, 5))
class RotaryInterleaved(nn.Module):
    """Rotary embedding of neighbours: dim 2i turns with dim 2i + 1."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(7, 30), nn.Linear(7, 30), nn.Linear(7, 12)
        self.out = nn.Linear(12, 5)
        angles = (torch.arange(5.0)[:, None] * torch.rand(5)).repeat_interleave(2, -1)
        self.register_buffer("cos", angles.cos())
        self.register_buffer("sin", angles.sin())

    def turn(self, x: Tensor) -> Tensor:
        turned = torch.stack([-x[..., 1::2], x[..., ::2]], -1).reshape(x.shape)
        return x * self.cos + turned * self.sin

    def forward(self, x: Tensor) -> Tensor:
        b, t, _ = x.shape
        q, k = (self.turn(y(x).view(b, t, 3, 10).transpose(1, 2)) for y in (self.q, self.k))
        v = self.v(x).view(b, t, 3, 4).transpose(1, 2)
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


@pattern(tokens, q_weight_0=(3, 4), k_weight_0=(3, 4), talk_weight_0="pinned")
class TalkingHeads(nn.Module):
    """A linear layer over the heads before the softmax: head j of the scores reads all heads i; input heads and output heads
    are separate units where both are free."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(7, 12), nn.Linear(7, 12), nn.Linear(7, 15)
        self.talk = nn.Linear(3, 3)
        self.out = nn.Linear(15, 5)

    def forward(self, x: Tensor) -> Tensor:
        b, t, _ = x.shape
        q, k = (y(x).view(b, t, 3, 4).transpose(1, 2) for y in (self.q, self.k))
        v = self.v(x).view(b, t, 3, 5).transpose(1, 2)
        scores = self.talk((q @ k.mT).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return self.out((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))


PATTERNS[-1] = Pattern(
    "TalkingHeads",
    TalkingHeads,
    tokens,
    {"q.weight:0": (3, 4), "talk.weight:1": (3,), "talk.weight:0": (3,), "v.weight:0": (3, 5)},
    PATTERNS[-1].why,
)


@pattern(tokens, a_weight_0="pinned")
class ChannelAttention(Hidden):
    """Attention in which channels are the tokens (XCiT, DaViT): they see each other in the softmax."""

    def between(self, x: Tensor) -> Tensor:
        weights = (x.mT @ x).softmax(-1)
        return x @ weights.mT


# -- shapes ------------------------------------------------------------------------------------------------------------


@pattern(image, a_weight_0="free", out_weight_1="free")
class FlattenSpace(nn.Module):
    """(c, h, w) flatten to one dim: a channel is a block of 16 columns."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 6, 3, 2, 1)
        self.out = nn.Linear(96, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.a(x).relu().flatten(1))


PATTERNS[-1] = Pattern("FlattenSpace", FlattenSpace, image, {"a.weight:0": (6,), "out.weight:1": "part"}, PATTERNS[-1].why)


@pattern(image, a_weight_0=(6,), out_weight_1="part")
class FlattenNHWC(nn.Module):
    """(h, w, c) flatten: a channel is every sixth column."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 6, 3, 2, 1)
        self.out = nn.Linear(96, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.a(x).relu().permute(0, 2, 3, 1).flatten(1))


@pattern(tokens, a_weight_0="free", out_weight_1="part")
class FlattenTokens(Hidden):
    """(tokens, channels) flatten."""

    last = 60

    def between(self, x: Tensor) -> Tensor:
        return x.relu().flatten(1)


@pattern(rows, a_weight_0="pinned")
class ChannelsToBatch(Hidden):
    """Channels fold into the batch and back with another factor: 2 x 12 rows of 1 become rows of 4."""

    last = 4

    def between(self, x: Tensor) -> Tensor:
        return x.reshape(-1, 4).relu().reshape(-1, 3, 4).sum(1)


PATTERNS[-1] = Pattern("ChannelsToBatch", ChannelsToBatch, rows, {"a.weight:0": (3, 4)}, "(b 12) is (b 3 4): 3 is summed, 4 is read by `out`")


@pattern(image, a_weight_0=(3,))
class PixelShuffle(ConvHidden):
    """12 channels become 3 at twice the resolution: four channels go at once."""

    last = 3

    def between(self, x: Tensor) -> Tensor:
        return F.pixel_shuffle(x, 2).relu()


@pattern(image, a_weight_0="free", out_weight_1="part")
class PixelUnshuffle(ConvHidden):
    """3 channels become 12 at half the resolution."""

    middle = 3
    last = 12

    def between(self, x: Tensor) -> Tensor:
        return F.pixel_unshuffle(x, 2).relu()


@pattern(image, a_weight_0="free", out_weight_1="part")
class Unfold(nn.Module):
    """im2col: (channel, kernel row, kernel column) in one dim, channel outermost."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 6, 3, padding=1)
        self.out = nn.Linear(54, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.unfold(self.a(x), 3, padding=1).mT)


@pattern(image, a_weight_0=(6,))
class Fold(nn.Module):
    """col2im: the way back."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 24, 2, 2)
        self.out = nn.Conv2d(6, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.fold(self.a(x).flatten(2), (8, 8), 2, stride=2))


@pattern(image, a_weight_0="free", out_weight_1="part")
class PatchMerging(nn.Module):
    """Four strided slices of an NHWC map, concatenated: Swin's downsampling."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 6, 3, padding=1)
        self.out = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x).permute(0, 2, 3, 1)
        return self.out(torch.cat([x[:, i::2, j::2] for i in (0, 1) for j in (0, 1)], -1))


PATTERNS[-1] = Pattern("PatchMerging", PatchMerging, image, {"a.weight:0": (6,), "out.weight:1": (6,)}, PATTERNS[-1].why)


@pattern(tokens, a_weight_0="free", table_1="free")
class LearnedPositions(Hidden):
    """A table of positions of which the first five are read."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(9, 12))

    def between(self, x: Tensor) -> Tensor:
        return (x + self.table[: x.shape[1]]).relu()


@pattern(lambda: (torch.randint(0, 11, (2, 4)),), table_weight_1="free", table_weight_0="pinned")
class Embedding(nn.Module):
    """Rows are words, which the input names; columns are a width."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(11, 12)
        self.out = nn.Linear(12, 5)

    def forward(self, ids: Tensor) -> Tensor:
        return self.out(self.table(ids).relu())


@pattern(lambda: (torch.randint(0, 11, (2, 4)),), table_weight_1="free", table_weight_0="pinned")
class EmbeddingBag(nn.Module):
    """Words are averaged, columns pass."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.EmbeddingBag(11, 12, mode="mean")
        self.out = nn.Linear(12, 5)

    def forward(self, ids: Tensor) -> Tensor:
        return self.out(self.table(ids).relu())


@pattern(rows, a_weight_0="free")
class Mask(Hidden):
    """A condition computed entry by entry."""

    def between(self, x: Tensor) -> Tensor:
        return torch.where(x > 0, x, 0.1 * x).masked_fill(x > 1, 1.0).clamp(-1, 1)


@pattern(rows, a_weight_0="free")
class MaskConstant(Hidden):
    """A mask over channels in a buffer: cut like any tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("keep", torch.arange(12) % 3 != 0)

    def between(self, x: Tensor) -> Tensor:
        return x.masked_fill(~self.keep, 0.5)


@pattern(rows, a_weight_0="pinned")
class PositionOfChannel(Hidden):
    """A ramp over the channels made by arange: its numbers are positions, and would start anew."""

    def between(self, x: Tensor) -> Tensor:
        return x * torch.arange(12, dtype=x.dtype)


@pattern(rows, a_weight_0="free")
class NewTensors(Hidden):
    """Zeros, ones and full tensors of a written width: the size follows."""

    def between(self, x: Tensor) -> Tensor:
        return x * torch.ones(12) + x.new_zeros(12) + torch.full((2, 12), 0.5)


@pattern(rows, a_weight_0="pinned")
class PadChannels(Hidden):
    """Zeros appended to the channels (the parameter-free shortcut of early ResNets)."""

    last = 15

    def between(self, x: Tensor) -> Tensor:
        return F.pad(x, (1, 2)).relu()


PATTERNS[-1] = Pattern("PadChannels", PadChannels, rows, {"a.weight:0": "free", "out.weight:1": "part"}, PATTERNS[-1].why)


# -- convolutions ------------------------------------------------------------------------------------------------------


@pattern(image, a_weight_0="free", b_weight_0="free")
class Depthwise(ConvHidden):
    """One filter per channel: `groups` follows the width."""

    def __init__(self) -> None:
        super().__init__()
        self.b = nn.Conv2d(12, 12, 3, padding=1, groups=12)

    def between(self, x: Tensor) -> Tensor:
        return self.b(x).relu()


@pattern(image, a_weight_0="free", b_weight_0="free")
class DepthMultiplier(ConvHidden):
    """Two filters per channel."""

    last = 24

    def __init__(self) -> None:
        super().__init__()
        self.b = nn.Conv2d(12, 24, 3, padding=1, groups=12)

    def between(self, x: Tensor) -> Tensor:
        return self.b(x).relu()


@pattern(image, a_weight_0=(3, 4), b_weight_0=(3, 5))
class Grouped(ConvHidden):
    """Whole groups, inputs per group, outputs per group."""

    last = 15

    def __init__(self) -> None:
        super().__init__()
        self.b = nn.Conv2d(12, 15, 3, padding=1, groups=3)

    def between(self, x: Tensor) -> Tensor:
        return self.b(x).relu()


@pattern(image, a_weight_0=(2, 6), b_weight_0=(2, 2, 3))
class GroupedTwice(ConvHidden):
    """Groups of 2, then of 4, on one width of 12: the common refinement is (2 2 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.b = nn.Conv2d(12, 12, 1, groups=2)
        self.c = nn.Conv2d(12, 12, 1, groups=4)

    def between(self, x: Tensor) -> Tensor:
        return self.c(self.b(x).relu()).relu()


@pattern(image, b_weight_0="pinned", c_weight_0=(4,))
class GroupsThatClash(ConvHidden):
    """Groups of 2, then of 3: (2 6) and (3 4) have no common refinement, so the width between them stays; outputs
    of one group of the second do not read it."""

    def __init__(self) -> None:
        super().__init__()
        self.b = nn.Conv2d(12, 12, 1, groups=2)
        self.c = nn.Conv2d(12, 12, 1, groups=3)

    def between(self, x: Tensor) -> Tensor:
        return self.c(self.b(x).relu()).relu()


@pattern(tokens, a_weight_0="free", b_weight_0=(3,))
class DealtAnew(nn.Module):
    """A reshape (3, 4) to (4, 3) over positions and channels mixes both; the heads beside them pass."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = nn.Linear(7, 12), nn.Linear(7, 12), nn.Linear(15, 5)

    def forward(self, x: Tensor) -> Tensor:
        b = self.b(x).view(x.shape[0], 5, 3, 4).transpose(1, 2)
        b = b.reshape(x.shape[0], 3, 4, 5)
        return self.out(self.a(x).sum(-1, keepdim=True).sum(1, keepdim=True) + b.permute(0, 2, 1, 3).flatten(2))


@pattern(image, a_weight_0="free", b_weight_1="free")
class Transposed(ConvHidden):
    """Weights of a transposed convolution are (in, out)."""

    def __init__(self) -> None:
        super().__init__()
        self.b = nn.ConvTranspose2d(12, 12, 2, 2)

    def between(self, x: Tensor) -> Tensor:
        return self.b(x).relu()


@pattern(image, a_weight_0=(3, 4), b_weight_1=(5,))
class TransposedGrouped(ConvHidden):
    """The same in three groups: the weight's second dim holds the outputs of one group."""

    last = 15

    def __init__(self) -> None:
        super().__init__()
        self.b = nn.ConvTranspose2d(12, 15, 2, 2, groups=3)

    def between(self, x: Tensor) -> Tensor:
        return self.b(x).relu()


@pattern(wave, a_weight_0="free", b_weight_0="free")
class Dilated(nn.Module):
    """Conv1d with a dilation, and padding by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = nn.Conv1d(3, 12, 3), nn.Conv1d(12, 10, 2, dilation=3), nn.Conv1d(10, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.b(F.pad(self.a(x), (3, 0))).relu())


@pattern(image, a_weight_0="free", squeeze_weight_0="free")
class SqueezeExcite(ConvHidden):
    """A gate computed from the pooled channels, on themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.squeeze, self.excite = nn.Conv2d(12, 4, 1), nn.Conv2d(4, 12, 1)

    def between(self, x: Tensor) -> Tensor:
        return x * self.excite(self.squeeze(x.mean((2, 3), keepdim=True)).relu()).sigmoid()


@pattern(image, a_weight_0="pinned")
class ConvOverChannels(ConvHidden):
    """ECA: a conv1d slides over the channels, which are its positions."""

    def __init__(self) -> None:
        super().__init__()
        self.b = nn.Conv1d(1, 1, 3, padding=1)

    def between(self, x: Tensor) -> Tensor:
        gate = self.b(x.mean((2, 3))[:, None])[:, 0]
        return x * gate.sigmoid()[:, :, None, None]


@pattern(image, a_weight_0="free", b_weight_0="free", short_weight_0="free")
class ResidualProjection(ConvHidden):
    """A residual with a 1x1 projection: two producers of one width."""

    def __init__(self) -> None:
        super().__init__()
        self.b, self.short = nn.Conv2d(12, 10, 3, padding=1), nn.Conv2d(12, 10, 1)
        self.out = nn.Conv2d(10, 5, 1)

    def between(self, x: Tensor) -> Tensor:
        return (self.b(x.relu()) + self.short(x)).relu()


@pattern(rows, b_weight_0="free")
class ResidualToInput(nn.Module):
    """A residual around the model's input: the stream stays, the inner width is free."""

    def __init__(self) -> None:
        super().__init__()
        self.b, self.c, self.out = nn.Linear(7, 12), nn.Linear(12, 7), nn.Linear(7, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(x + self.c(self.b(x).relu()))


@pattern(image, a_weight_0="free")
class Pooling(ConvHidden):
    """Pools, upsampling, adaptive pools: space only."""

    def between(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(x, 2) + F.avg_pool2d(x, 2) + F.adaptive_avg_pool2d(x, 4)
        return F.interpolate(x, scale_factor=2, mode="bilinear")


@pattern(image, a_weight_0="pinned")
class LocalResponseNorm(ConvHidden):
    """Divides by neighbouring channels."""

    def between(self, x: Tensor) -> Tensor:
        return F.local_response_norm(x, 3)


@pattern(rows, a_weight_0="pinned")
class PoolOverChannels(Hidden):
    """Maxout: pooling with channels as positions."""

    last = 6

    def between(self, x: Tensor) -> Tensor:
        return F.max_pool1d(x[:, None], 2)[:, 0]


# -- parameters --------------------------------------------------------------------------------------------------------


@pattern(rows, w_0=(7,), w_1="pinned")
class TiedTranspose(nn.Module):
    """One matrix as encoder and as decoder."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(7, 7))

    def forward(self, x: Tensor) -> Tensor:
        return (x @ self.w.t()).relu() @ self.w


@pattern(rows, a_weight_0=(12,), b_weight_0=(12,), b_weight_1=(12,))
class UsedTwice(Hidden):
    """One layer twice in a row: its inputs and outputs are one axis."""

    def __init__(self) -> None:
        super().__init__()
        self.b = nn.Linear(12, 12)

    def between(self, x: Tensor) -> Tensor:
        return self.b(self.b(x).relu()).relu()


@pattern(rows, a_weight_0="free", b_weight_0="free")
class SharedByTwoWidths(nn.Module):
    """One layer reads two tensors: they have one width."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.out = nn.Linear(7, 12), nn.Linear(7, 12), nn.Linear(12, 10), nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.c(self.a(x).relu()) * self.c(self.b(x).tanh()))


@pattern(rows, a_weight_0="pinned")
class WeightNorm(Hidden):
    """A parametrised weight: direction over the inputs, a gain per output."""

    def __init__(self) -> None:
        super().__init__()
        self.b = nn.utils.parametrizations.weight_norm(nn.Linear(12, 10))
        self.out = nn.Linear(10, 5)

    def between(self, x: Tensor) -> Tensor:
        return self.b(x).relu()


PATTERNS[-1] = Pattern(
    "WeightNorm",
    WeightNorm,
    rows,
    {"a.weight:0": "pinned", "b.parametrizations.weight.original0:0": "free", "b.parametrizations.weight.original1:0": "free"},
    "Inputs of `b` see each other in the norm of its rows; its outputs do not.",
)


@pattern(image, b_weight_0="free", a_weight_0="pinned")
class WeightStandardised(ConvHidden):
    """A weight made zero-mean per output filter before use: inputs see each other there."""

    def __init__(self) -> None:
        super().__init__()
        self.b = nn.Conv2d(12, 10, 3, padding=1)
        self.out = nn.Conv2d(10, 5, 1)

    def between(self, x: Tensor) -> Tensor:
        w = self.b.weight
        return F.conv2d(x, w - w.mean((1, 2, 3), keepdim=True), self.b.bias, padding=1).relu()


@pattern(rows, u_1="free", v_0="free", a_weight_0="free")
class LowRank(Hidden):
    """A weight computed as a product of two: the rank is a width as well."""

    def __init__(self) -> None:
        super().__init__()
        self.u, self.v = nn.Parameter(torch.randn(12, 4)), nn.Parameter(torch.randn(4, 12))

    def between(self, x: Tensor) -> Tensor:
        return F.linear(x, self.u @ self.v).relu()


@pattern(rows, a_weight_0="free", gain_0="free")
class ComputedBias(Hidden):
    """Half of a bias is a parameter, half a buffer of zeros (BEiT's qkv bias)."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.randn(6))
        self.register_buffer("zero", torch.zeros(6))

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.linear(x, self.a.weight, torch.cat([self.gain, self.zero])).relu())


@pattern(rows, experts_0="free", experts_1="free", router_weight_0="free")
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


PATTERNS[-1] = Pattern(
    "SoftExperts", SoftExperts, rows, {"experts:0": "pinned", "experts:1": (12,), "back:2": (12,), "router.weight:0": "pinned"}, PATTERNS[-1].why
)


@pattern(tokens, a_weight_0="free")
class LSTM(Hidden):
    """Four gates in one matrix, and a recurrence: the state's width is pinned, what comes in is free."""

    last = 10

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(12, 10, batch_first=True)

    def between(self, x: Tensor) -> Tensor:
        return self.rnn(x)[0]


@pattern(tokens, a_weight_0="free")
class GRU(Hidden):
    """The same with three gates."""

    last = 10

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(12, 10, batch_first=True)

    def between(self, x: Tensor) -> Tensor:
        return self.rnn(x)[0]


@pattern(tokens, a_weight_0="free", w_0="free")
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


@pattern(rows, a_weight_0="pinned")
class CustomOp(Hidden):
    """Unknown is never a guess: pinned."""

    def between(self, x: Tensor) -> Tensor:
        return torch.ops.optin_patterns.twice(x)


@pattern(rows, a_weight_0="free")
class MultipleOutputs(Hidden):
    """A hidden tensor is an output as well: its width is part of the contract."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
        hidden = self.a(x)
        return {"hidden": hidden, "logits": self.out(hidden.relu())}


PATTERNS[-1] = Pattern("MultipleOutputs", MultipleOutputs, rows, {"a.weight:0": "pinned"}, PATTERNS[-1].why)


@pattern(rows, a_weight_0="free")
class DeadBranch(Hidden):
    """A branch that nobody reads, and an in-place op."""

    def between(self, x: Tensor) -> Tensor:
        _ = x.softmax(-1) @ torch.ones(12, 3)
        return x.clone().relu_().add_(1).mul_(2)


PATTERNS[-1] = Pattern("DeadBranch", DeadBranch, rows, {}, PATTERNS[-1].why)


@pattern(rows, a_weight_0="free")
class InPlaceCopy(Hidden):
    """A fresh tensor filled by copy_."""

    def between(self, x: Tensor) -> Tensor:
        y = torch.zeros(2, 12)
        y.copy_(x)
        return y.relu()

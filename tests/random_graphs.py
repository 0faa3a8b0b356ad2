"""Random modules that are valid by construction: steps are drawn, run at once, and kept with what they returned."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Integer = Callable[[int, int], int]
WIDTHS = (2, 3, 4, 6, 8, 12)
SIDE = 2  # images are 2 x 2, sequences 4 long, so that one becomes the other
WIDEST = 48


@dataclass
class Step:
    """`apply(layers, *values)` on earlier values; its text for people."""

    text: str
    inputs: tuple[int, ...]
    layers: nn.ModuleList
    apply: Callable[..., Any]


class RandomNet(nn.Module):
    """Steps over a growing list of values; every value that nothing read is an input of the head."""

    def __init__(self, integer: Integer, length: int) -> None:
        super().__init__()
        self.integer = integer
        self.steps: list[Step] = []
        self.layers = nn.ModuleList()
        start = self.pick((4, 6))
        self.image = self.flag()
        self.example = torch.randn(2, start, SIDE, SIDE) if self.image else torch.randn(2, SIDE * SIDE, start)
        self.example = self.example.double()
        self.values: list[Tensor] = [self.example]
        for _ in range(length):
            self.grow()
        read = {i for step in self.steps for i in step.inputs}
        self.ends = [i for i in range(1, len(self.values)) if i not in read] or [len(self.values) - 1]
        self.heads = nn.ModuleList(nn.Linear(self.channels(self.values[i]), 3) for i in self.ends).double()
        del self.values, self.integer  # only numbers and layers remain, so that the module can be copied
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        values = [x]
        for step, layers in zip(self.steps, self.layers, strict=True):
            found = step.apply(layers, *(values[i] for i in step.inputs))
            values.extend(found if isinstance(found, (tuple, list)) else [found])
        ends = [values[i].flatten(2).transpose(1, 2) if values[i].dim() == 4 else values[i] for i in self.ends]
        return torch.stack([head(end).mean(1) for head, end in zip(self.heads, ends, strict=True)]).sum(0)

    def __str__(self) -> str:
        return "\n".join([f"0: input {list(self.example.shape)}", *(step.text for step in self.steps), f"ends {self.ends}"])

    # -- growing ---------------------------------------------------------------------------------------------------------

    def flag(self) -> bool:
        return bool(self.integer(0, 1))

    def pick(self, choices: Sequence[Any]) -> Any:
        return choices[self.integer(0, len(choices) - 1)]

    @staticmethod
    def channels(value: Tensor) -> int:
        return value.shape[1] if value.dim() == 4 else value.shape[-1]

    def grow(self) -> None:
        at = max(0, len(self.values) - 1 - self.integer(0, 3))
        value = self.values[at]
        kinds = IMAGE_STEPS if value.dim() == 4 else SEQUENCE_STEPS
        name, maker = self.pick(kinds)
        inputs, layers, apply = maker(self, at, value)
        owned = nn.ModuleList(layers).double().eval()
        with torch.no_grad():
            for layer in owned.modules():
                if isinstance(layer, nn.BatchNorm2d):
                    layer.running_mean.normal_()
                    layer.running_var.uniform_(0.5, 1.5)
            found = apply(owned, *(self.values[i] for i in inputs))
        several = isinstance(found, (tuple, list))
        results = list(found) if several else [found]
        if any(self.channels(r) > WIDEST for r in results):
            return
        first = len(self.values)
        text = f"{', '.join(str(first + k) for k in range(len(results)))}: {name}{list(inputs)} -> {[list(r.shape) for r in results]}"
        self.steps.append(Step(text, tuple(inputs), owned, apply))
        self.layers.append(owned)
        self.values.extend(results)

    def partner(self, at: int, fits: Callable[[Tensor], bool]) -> int:
        """Another value that fits, or the same one."""
        found = [i for i, value in enumerate(self.values) if fits(value)]
        return self.pick(found) if found else at


Made = tuple[Sequence[int], Sequence[nn.Module], Callable[..., Any]]
Maker = Callable[[RandomNet, int, Tensor], Made]


class Weight(nn.Module):
    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.randn(shape))


def divisor(net: RandomNet, n: int) -> int:
    return net.pick([d for d in range(1, n + 1) if n % d == 0])


# -- both kinds ----------------------------------------------------------------------------------------------------------


def activation(net: RandomNet, at: int, x: Tensor) -> Made:
    function = net.pick((torch.relu, F.gelu, torch.sigmoid, torch.tanh, F.hardswish, torch.square))
    return [at], [], lambda layers, x: torch.tanh(function(x))


def added(net: RandomNet, at: int, x: Tensor) -> Made:
    other = net.partner(at, lambda v: v.shape == x.shape)
    if net.flag():
        return [at, other], [], lambda layers, x, y: x + y
    return [at, other], [], lambda layers, x, y: torch.tanh(x * y)


def joined(net: RandomNet, at: int, x: Tensor) -> Made:
    dim = 1 if x.dim() == 4 else -1
    other = net.partner(at, lambda v: v.dim() == x.dim())
    return [at, other], [], lambda layers, x, y: torch.cat([x, y], dim)


def parted(net: RandomNet, at: int, x: Tensor) -> Made:
    dim = 1 if x.dim() == 4 else -1
    width = net.channels(x)
    if net.flag():
        count = net.integer(1, 3)
        return [at], [], lambda layers, x: x.chunk(count, dim)
    first = net.integer(1, width - 1) if width > 1 else 1
    sizes = [first, width - first] if width > 1 else [1]
    return [at], [], lambda layers, x: x.split(sizes, dim)


def sliced(net: RandomNet, at: int, x: Tensor) -> Made:
    dim, width = (1 if x.dim() == 4 else 2), net.channels(x)
    start = net.integer(0, width - 1)
    count, step = net.integer(1, width - start), net.pick((1, 1, 2))
    if dim == 1:
        return [at], [], lambda layers, x: x[:, start : start + count : step]
    return [at], [], lambda layers, x: x[:, :, start : start + count : step]


def padded(net: RandomNet, at: int, x: Tensor) -> Made:
    widths = [net.integer(0, 2), net.integer(0, 2)]
    value = net.pick((0.0, 0.5))
    widths = widths if x.dim() == 3 else [0, 0, 0, 0, *widths]
    return [at], [], lambda layers, x: F.pad(x, widths, value=value)


def turned(net: RandomNet, at: int, x: Tensor) -> Made:
    dim = 1 if x.dim() == 4 else -1
    function = net.pick((lambda x: x.flip(dim), lambda x: x.roll(1, dim), lambda x: x.softmax(dim), lambda x: torch.tanh(x.cumsum(dim))))
    return [at], [], lambda layers, x: function(x)


def copied(net: RandomNet, at: int, x: Tensor) -> Made:
    dim, times = (1 if x.dim() == 4 else 2), net.integer(1, 3)
    counts = [times if i == dim else 1 for i in range(x.dim())]
    if net.flag():
        return [at], [], lambda layers, x: x.repeat(counts)
    return [at], [], lambda layers, x: x.repeat_interleave(times, dim)


def written(net: RandomNet, at: int, x: Tensor) -> Made:
    """A buffer made from zeros, filled piece by piece in place."""
    width = net.channels(x)
    extra = net.integer(0, 2)

    def apply(layers: nn.ModuleList, x: Tensor) -> Tensor:
        y = x.new_zeros(x.shape[0], width + extra, SIDE, SIDE) if x.dim() == 4 else x.new_zeros(x.shape[0], SIDE * SIDE, width + extra)
        if x.dim() == 4:
            y[:, :width] = x
        else:
            y[:, :, :width] = x
        return y

    return [at], [], apply


def without_gradient(net: RandomNet, at: int, x: Tensor) -> Made:
    def apply(layers: nn.ModuleList, x: Tensor) -> Tensor:
        with torch.no_grad():
            gate = x.sigmoid()
        return x * gate

    return [at], [], apply


# -- sequences [b, n, c] -------------------------------------------------------------------------------------------------


def linear(net: RandomNet, at: int, x: Tensor) -> Made:
    return [at], [nn.Linear(x.shape[-1], net.pick(WIDTHS), bias=net.flag())], lambda layers, x: layers[0](x)


def tied(net: RandomNet, at: int, x: Tensor) -> Made:
    """One weight, read twice: up, and back by its transpose or again."""
    weight = Weight(net.pick(WIDTHS), x.shape[-1])
    if net.flag():
        return [at], [weight], lambda layers, x: torch.tanh(F.linear(torch.tanh(F.linear(x, layers[0].value)), layers[0].value.t()))
    other = net.partner(at, lambda v: v.shape == x.shape)
    return [at, other], [weight], lambda layers, x, y: F.linear(x, layers[0].value) + F.linear(y, layers[0].value)


def einsum(net: RandomNet, at: int, x: Tensor) -> Made:
    equation = net.pick(("bnc,co->bno", "bnc,co->bno", "bnc,cn->bnc"))
    weight = Weight(x.shape[-1], SIDE * SIDE if equation.endswith("bnc") else net.pick(WIDTHS))
    return [at], [weight], lambda layers, x: torch.einsum(equation, x, layers[0].value)


def scaled(net: RandomNet, at: int, x: Tensor) -> Made:
    return [at], [Weight(x.shape[-1])], lambda layers, x: x * layers[0].value


def normed(net: RandomNet, at: int, x: Tensor) -> Made:
    return [at], [nn.LayerNorm(x.shape[-1])], lambda layers, x: layers[0](x)


def glu(net: RandomNet, at: int, x: Tensor) -> Made:
    return [at], [nn.Linear(x.shape[-1], 2 * net.pick(WIDTHS))], lambda layers, x: F.glu(layers[0](x))


def gated(net: RandomNet, at: int, x: Tensor) -> Made:
    width = net.pick(WIDTHS)
    return [at], [nn.Linear(x.shape[-1], 2 * width)], lambda layers, x: F.silu((p := layers[0](x).chunk(2, -1))[0]) * p[1]


def attention(net: RandomNet, at: int, x: Tensor) -> Made:
    heads, width, groups = net.integer(1, 4), net.integer(1, 4), net.pick((1, 1, 2))
    fused, flash, causal = net.flag() and groups == 1, net.flag(), net.flag()
    inner = heads * width

    def apply(layers: nn.ModuleList, x: Tensor) -> Tensor:
        b, n = x.shape[0], SIDE * SIDE
        if fused:
            q, k, v = layers[0](x).reshape(b, n, 3, heads, width).permute(2, 0, 3, 1, 4).unbind(0)
        else:
            q = layers[0](x).view(b, n, heads * groups, width).transpose(1, 2)
            k, v = (layers[i](x).view(b, n, heads, width).transpose(1, 2) for i in (1, 2))
            if groups > 1 and not flash:
                k, v = (t[:, :, None].expand(b, heads, groups, n, width).reshape(b, heads * groups, n, width) for t in (k, v))
        if flash:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=groups > 1)
        else:
            y = (q @ k.transpose(-2, -1) * width**-0.5).softmax(-1) @ v
        return layers[-1](y.transpose(1, 2).reshape(b, n, -1))

    projections = [nn.Linear(x.shape[-1], 3 * inner)] if fused else [nn.Linear(x.shape[-1], m * inner) for m in (groups, 1, 1)]
    return [at], [*projections, nn.Linear(inner * groups, net.pick(WIDTHS))], apply


def shuffled(net: RandomNet, at: int, x: Tensor) -> Made:
    groups = divisor(net, x.shape[-1])
    return [at], [], lambda layers, x: x.view(x.shape[0], SIDE * SIDE, groups, -1).transpose(2, 3).reshape(x.shape[0], SIDE * SIDE, -1)


def per_head(net: RandomNet, at: int, x: Tensor) -> Made:
    """Heads folded into the batch, a shared projection on each."""
    heads = divisor(net, x.shape[-1])
    inner = x.shape[-1] // heads

    def apply(layers: nn.ModuleList, x: Tensor) -> Tensor:
        b = x.shape[0]
        y = x.reshape(b, SIDE * SIDE, heads, inner).transpose(1, 2).reshape(b * heads, SIDE * SIDE, inner)
        return layers[0](y).reshape(b, heads, SIDE * SIDE, -1).transpose(1, 2).flatten(2)

    return [at], [nn.Linear(inner, net.pick((1, 2, 3)))], apply


def mixed_tokens(net: RandomNet, at: int, x: Tensor) -> Made:
    return [at], [nn.Linear(SIDE * SIDE, SIDE * SIDE)], lambda layers, x: layers[0](x.transpose(1, 2)).transpose(1, 2)


def summed(net: RandomNet, at: int, x: Tensor) -> Made:
    """Groups of channels are summed, each with its own weight."""
    groups = divisor(net, x.shape[-1])
    inner = x.shape[-1] // groups
    dim = net.pick((-1, -2))
    return [at], [Weight(groups, inner)], lambda layers, x: (x.unflatten(-1, (groups, inner)) * layers[0].value).sum(dim)


def to_image(net: RandomNet, at: int, x: Tensor) -> Made:
    return [at], [], lambda layers, x: x.transpose(1, 2).reshape(x.shape[0], x.shape[2], SIDE, SIDE)


def positions(net: RandomNet, at: int, x: Tensor) -> Made:
    return [at], [Weight(1, SIDE * SIDE, x.shape[-1])], lambda layers, x: x + layers[0].value


# -- images [b, c, h, w] -------------------------------------------------------------------------------------------------


def conv(net: RandomNet, at: int, x: Tensor) -> Made:
    kernel = net.pick((1, 3))
    layer = nn.Conv2d(x.shape[1], net.pick(WIDTHS), kernel, padding=kernel // 2, bias=net.flag())
    return [at], [layer], lambda layers, x: layers[0](x)


def grouped(net: RandomNet, at: int, x: Tensor) -> Made:
    groups = divisor(net, x.shape[1])
    layer = nn.Conv2d(x.shape[1], groups * net.integer(1, 3), 3, padding=1, groups=groups)
    return [at], [layer], lambda layers, x: layers[0](x)


def transposed(net: RandomNet, at: int, x: Tensor) -> Made:
    groups = divisor(net, x.shape[1])
    return [at], [nn.ConvTranspose2d(x.shape[1], groups * net.integer(1, 3), 1, groups=groups)], lambda layers, x: layers[0](x)


def depthwise(net: RandomNet, at: int, x: Tensor) -> Made:
    return [at], [nn.Conv2d(x.shape[1], x.shape[1], 3, padding=1, groups=x.shape[1])], lambda layers, x: layers[0](x)


def batch_norm(net: RandomNet, at: int, x: Tensor) -> Made:
    return [at], [nn.BatchNorm2d(x.shape[1])], lambda layers, x: layers[0](x)


def group_norm(net: RandomNet, at: int, x: Tensor) -> Made:
    return [at], [nn.GroupNorm(divisor(net, x.shape[1]), x.shape[1])], lambda layers, x: layers[0](x)


def squeeze_excite(net: RandomNet, at: int, x: Tensor) -> Made:
    down, up = nn.Conv2d(x.shape[1], net.pick(WIDTHS), 1), None
    up = nn.Conv2d(down.out_channels, x.shape[1], 1)
    return [at], [down, up], lambda layers, x: x * torch.sigmoid(layers[1](F.relu(layers[0](x.mean((2, 3), keepdim=True)))))


def pool(net: RandomNet, at: int, x: Tensor) -> Made:
    return [at], [], lambda layers, x: F.max_pool2d(x, 3, 1, 1)


def pixels(net: RandomNet, at: int, x: Tensor) -> Made:
    layer = nn.Conv2d(x.shape[1], 4 * net.integer(1, 3), 1)
    return [at], [layer], lambda layers, x: F.avg_pool2d(F.pixel_shuffle(layers[0](x), 2), 2)


def channel_shuffle(net: RandomNet, at: int, x: Tensor) -> Made:
    groups = divisor(net, x.shape[1])
    return [at], [], lambda layers, x: x.view(x.shape[0], groups, -1, SIDE, SIDE).transpose(1, 2).flatten(1, 2)


def to_sequence(net: RandomNet, at: int, x: Tensor) -> Made:
    return [at], [], lambda layers, x: x.flatten(2).transpose(1, 2)


def named(*makers: Maker) -> list[tuple[str, Maker]]:
    return [(maker.__name__, maker) for maker in makers]


BOTH = named(activation, added, joined, parted, sliced, padded, turned, copied, written, without_gradient)
SEQUENCE_STEPS = BOTH + named(
    linear,
    linear,
    tied,
    einsum,
    scaled,
    normed,
    glu,
    gated,
    attention,
    attention,
    shuffled,
    per_head,
    mixed_tokens,
    summed,
    to_image,
    positions,
)
IMAGE_STEPS = BOTH + named(
    conv, conv, grouped, transposed, depthwise, batch_norm, group_norm, squeeze_excite, pool, pixels, channel_shuffle, to_sequence
)

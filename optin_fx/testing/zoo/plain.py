"""Networks of plain PyTorch: its own modules, and ways of writing that no library's class has."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from optin_fx.testing.zoo.entry import Entry, image


class SelfAttention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.head = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        return self.head(x + self.attention(y, y, y)[0])


class CrossAttention(nn.Module):
    """Queries of one width, keys of a second, values of a third; the weights are returned as well."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, heads, kdim=width // 2, vdim=width // 3, batch_first=True)
        self.head = nn.Linear(width, 5)

    def forward(self, x: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        k = memory[..., : self.attention.kdim]
        v = memory[..., : self.attention.vdim]
        y, weights = self.attention(x, k, v, need_weights=True)
        return self.head(y), weights


class Encoder(nn.Module):
    def __init__(self, width: int, heads: int, inner: int, *, norm_first: bool) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(width, heads, inner, batch_first=True, norm_first=norm_first, activation="gelu")
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x))


class Decoder(nn.Module):
    def __init__(self, width: int, heads: int, inner: int) -> None:
        super().__init__()
        layer = nn.TransformerDecoderLayer(width, heads, inner, batch_first=True)
        self.decoder = nn.TransformerDecoder(layer, 2)
        self.head = nn.Linear(width, 5)

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        mask = torch.triu(torch.ones(x.shape[1], x.shape[1], dtype=torch.bool), 1)
        return self.head(self.decoder(x, memory, tgt_mask=mask, tgt_is_causal=True))


class EinsumAttention(nn.Module):
    """Weights are four-dimensional tensors with heads as a dim of their own, as in JAX code."""

    def __init__(self, width: int, heads: int, dim: int) -> None:
        super().__init__()
        self.q = nn.Parameter(torch.randn(width, heads, dim) / width**0.5)
        self.k = nn.Parameter(torch.randn(width, heads, dim) / width**0.5)
        self.v = nn.Parameter(torch.randn(width, heads, dim + 1) / width**0.5)
        self.o = nn.Parameter(torch.randn(heads, dim + 1, width) / width**0.5)
        self.head = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        q = torch.einsum("btc,chd->bhtd", x, self.q)
        k = torch.einsum("btc,chd->bhtd", x, self.k)
        v = torch.einsum("btc,chd->bhtd", x, self.v)
        scores = torch.einsum("bhqd,bhkd->bhqk", q, k).mul(q.shape[-1] ** -0.5).softmax(-1)
        return self.head(x + torch.einsum("bhqk,bhkd,hdc->bqc", scores, v, self.o))


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase], width: int, hidden: int, **options: Any) -> None:
        super().__init__()
        self.embed = nn.Linear(7, width)
        self.rnn = kind(width, hidden, batch_first=True, **options)
        self.out = nn.Sequential(nn.Linear(hidden * (2 if options.get("bidirectional") else 1), 19), nn.ReLU(), nn.Linear(19, 5))

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.rnn(self.embed(x).relu())[0])


class TiedAutoencoder(nn.Module):
    """The decoder is the transposed encoder: one parameter with its input and output widths in two roles."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(inner, width) / width**0.5)
        self.inner_bias = nn.Parameter(torch.randn(inner))
        self.outer_bias = nn.Parameter(torch.randn(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(F.linear(x, self.weight, self.inner_bias).relu(), self.weight.t(), self.outer_bias)


class TiedLanguageModel(nn.Module):
    def __init__(self, vocab: int, width: int, inner: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocab, width)
        self.up = nn.Linear(width, inner)
        self.down = nn.Linear(inner, width)
        self.out = nn.Linear(width, vocab, bias=False)
        self.out.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        return self.out(x + self.down(F.gelu(self.up(x))))


class Twice(nn.Module):
    """One linear layer applied twice in a row: its input and output widths are one axis."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.enter = nn.Linear(7, width)
        self.middle = nn.Linear(width, width)
        self.leave = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        for _ in range(2):
            x = self.middle(x).relu()
        return self.leave(x)


class Buffers(nn.Module):
    """Statistics of the input and of a hidden width as buffers; one of them is not persistent."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.enter = nn.Linear(7, width)
        self.leave = nn.Linear(width, 5)
        self.register_buffer("mean", torch.randn(7))
        self.register_buffer("scale", torch.rand(width) + 0.5)
        self.register_buffer("shift", torch.randn(width), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.leave((self.enter(x - self.mean) * self.scale + self.shift).tanh())


class Lists(nn.Module):
    """Parameters in a ParameterList and a ParameterDict; a frozen one; a detached branch."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weights = nn.ParameterList([torch.randn(width, 7), torch.randn(width, width), torch.randn(5, width)])
        self.biases = nn.ParameterDict(
            {"first": nn.Parameter(torch.randn(width)), "second": nn.Parameter(torch.randn(width), requires_grad=False)}
        )

    def forward(self, x: Tensor) -> Tensor:
        x = F.linear(x, self.weights[0], self.biases["first"]).relu()
        with torch.no_grad():
            gate = x.detach().sigmoid()
        return F.linear(F.linear(x * gate, self.weights[1], self.biases["second"]).relu(), self.weights[2])


@torch.library.custom_op("optin_zoo::soft_clip", mutates_args=())
def soft_clip(x: Tensor, limit: float) -> Tensor:
    """A user's own op: entry by entry, but no rule says so."""
    return limit * torch.tanh(x / limit)


@soft_clip.register_fake
def _(x: Tensor, limit: float) -> Tensor:
    return torch.empty_like(x)


class CustomOp(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.enter = nn.Linear(7, width)
        self.middle = nn.Linear(width, width + 2)
        self.leave = nn.Linear(width + 2, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.ops.optin_zoo.soft_clip(self.enter(x), 2.0)
        return self.leave(self.middle(x).relu())


class UNet(nn.Module):
    """Skips by concatenation, upsampling by transposed convolution."""

    def __init__(self, width: int, depth: int = 2) -> None:
        super().__init__()
        widths = [width * 2**i for i in range(depth + 1)]
        self.down = nn.ModuleList(self.block(a, b) for a, b in zip([3, *widths], widths, strict=False))
        self.up = nn.ModuleList(nn.ConvTranspose2d(b, a, 2, 2) for a, b in itertools.pairwise(widths))
        self.merge = nn.ModuleList(self.block(2 * a, a) for a in widths[:-1])
        self.head = nn.Conv2d(width, 5, 1)

    @staticmethod
    def block(a: int, b: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU(), nn.Conv2d(b, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU()
        )

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for block in self.down:
            x = block(F.max_pool2d(x, 2) if skips else x)
            skips.append(x)
        for up, merge, skip in reversed(list(zip(self.up, self.merge, skips, strict=False))):
            x = merge(torch.cat([skip, up(x)], 1))
        return self.head(x)


class WaveNet(nn.Module):
    """Dilated causal convolution with gated units, and the sum of all skips."""

    def __init__(self, width: int, skip: int, layers: int) -> None:
        super().__init__()
        self.enter = nn.Conv1d(1, width, 1)
        self.dilated = nn.ModuleList(nn.Conv1d(width, 2 * width, 2, dilation=2**i) for i in range(layers))
        self.residual = nn.ModuleList(nn.Conv1d(width, width, 1) for _ in range(layers))
        self.skip = nn.ModuleList(nn.Conv1d(width, skip, 1) for _ in range(layers))
        self.leave = nn.Sequential(nn.ReLU(), nn.Conv1d(skip, skip, 1), nn.ReLU(), nn.Conv1d(skip, 5, 1))

    def forward(self, x: Tensor) -> Tensor:
        x, total = self.enter(x), 0
        for dilated, residual, skip in zip(self.dilated, self.residual, self.skip, strict=True):
            a, b = dilated(F.pad(x, (dilated.dilation[0], 0))).chunk(2, 1)
            gated = a.tanh() * b.sigmoid()
            x, total = x + residual(gated), total + skip(gated)
        return self.leave(total)


class Speech(nn.Sequential):
    """M5-like: raw audio through strided Conv1d, BatchNorm and pooling."""

    def __init__(self, width: int) -> None:
        super().__init__(
            nn.Conv1d(1, width, 16, 4), nn.BatchNorm1d(width), nn.ReLU(), nn.MaxPool1d(2),
            nn.Conv1d(width, 2 * width, 3), nn.BatchNorm1d(2 * width), nn.ReLU(), nn.MaxPool1d(2),
            nn.Conv1d(2 * width, 2 * width, 3, groups=width), nn.GELU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(2 * width, 5),
        )  # fmt: skip


class StyleTransfer(nn.Module):
    """Reflection padding, InstanceNorm, residual blocks, nearest upsampling."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.enter = nn.Sequential(nn.ReflectionPad2d(1), nn.Conv2d(3, width, 3, 2), nn.InstanceNorm2d(width, affine=True), nn.ReLU())
        self.block = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1),
            nn.InstanceNorm2d(width, affine=True),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.InstanceNorm2d(width),
        )
        self.leave = nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(width, 3, 3, padding=1), nn.Tanh())

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        return self.leave(x + self.block(x))


class SuperResolution(nn.Module):
    """Pixel shuffle: four channels make one pixel block."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.enter = nn.Conv2d(3, width, 3, padding=1)
        self.grow = nn.Conv2d(width, 4 * width, 3, padding=1)
        self.leave = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.leave(F.pixel_shuffle(self.grow(self.enter(x).relu()), 2).relu())


class Siamese(nn.Module):
    """One tower over two inputs, then a bilinear form."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.tower = nn.Sequential(nn.Linear(7, width), nn.ReLU(), nn.Linear(width, width))
        self.score = nn.Bilinear(width, width, 5)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.score(self.tower(a), self.tower(b))


class Nerf(nn.Module):
    """Positional encoding, a deep MLP, and the input concatenated again half way."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Linear(36, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
        self.second = nn.Sequential(nn.Linear(width + 36, width), nn.ReLU(), nn.Linear(width, 4))
        self.register_buffer("bands", 2.0 ** torch.arange(6))

    def forward(self, x: Tensor) -> Tensor:
        angles = (x[..., None] * self.bands).flatten(-2)
        code = torch.cat([angles.sin(), angles.cos()], -1)
        return self.second(torch.cat([self.first(code), code], -1))


class Recommender(nn.Module):
    """DLRM-like: bags of embeddings, dense features, pairwise products."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.bags = nn.ModuleList(nn.EmbeddingBag(11, width, mode="mean") for _ in range(3))
        self.dense = nn.Sequential(nn.Linear(7, 22), nn.ReLU(), nn.Linear(22, width), nn.ReLU())
        self.top = nn.Sequential(nn.Linear(width + 16, 26), nn.ReLU(), nn.Linear(26, 1))

    def forward(self, x: Tensor, ids: Tensor) -> Tensor:
        x = self.dense(x)
        fields = torch.stack([x, *(bag(ids[:, i]) for i, bag in enumerate(self.bags))], 1)
        return self.top(torch.cat([x, torch.bmm(fields, fields.transpose(1, 2)).flatten(1)], 1))


class GraphLayer(nn.Module):
    """Message passing with a dense adjacency, two heads of attention scores over neighbours."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.enter = nn.Linear(7, width * heads, bias=False)
        self.source = nn.Parameter(torch.randn(heads, width))
        self.target = nn.Parameter(torch.randn(heads, width))
        self.leave = nn.Linear(width * heads, 5)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        b, n, _ = x.shape
        h = self.enter(x).view(b, n, self.heads, -1)
        scores = (h * self.source).sum(-1)[:, :, None] + (h * self.target).sum(-1)[:, None]
        weights = F.leaky_relu(scores, 0.2).masked_fill(edges[..., None] < 0, -1e9).softmax(2)
        return self.leave(F.elu(torch.einsum("bijh,bjhd->bihd", weights, h)).flatten(2))


class Diffusion(nn.Module):
    """A UNet block of diffusion models: GroupNorm, a time embedding that scales and shifts, attention over pixels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.time = nn.Sequential(nn.Linear(8, 18), nn.SiLU(), nn.Linear(18, 2 * width))
        self.enter = nn.Conv2d(3, width, 3, padding=1)
        self.norm1, self.conv1 = nn.GroupNorm(4, width), nn.Conv2d(width, width, 3, padding=1)
        self.norm2, self.conv2 = nn.GroupNorm(4, width), nn.Conv2d(width, width, 3, padding=1)
        self.qkv, self.out = nn.Conv2d(width, 3 * width, 1), nn.Conv2d(width, width, 1)
        self.leave = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        x = self.enter(x)
        scale, shift = self.time(t)[..., None, None].chunk(2, 1)
        y = self.conv1(F.silu(self.norm1(x)))
        x = x + self.conv2(F.silu(self.norm2(y) * (1 + scale) + shift))
        b, c, h, w = x.shape
        q, k, v = self.qkv(x).reshape(b, 3, c, h * w).unbind(1)
        weights = torch.bmm(q.transpose(1, 2), k).mul(c**-0.5).softmax(-1)
        return self.leave(x + self.out(torch.bmm(v, weights.transpose(1, 2)).reshape(b, c, h, w)))


def plain(name: str, make: Callable[[bool], nn.Module], *inputs: Callable[[], Tensor], note: str = "") -> Entry:
    return Entry(name, "plain", "torch.nn", make, lambda _: (tuple(f() for f in inputs), {}), None, note)


def tokens(width: int) -> Callable[[], Tensor]:
    return lambda: torch.randn(2, 6, width)


def sized(small: int, real: int) -> Callable[[bool], int]:
    return lambda is_small: small if is_small else real


def sequence(name: str, make: Callable[[int, int], nn.Module], *, inputs: int = 1, note: str = "") -> Entry:
    """Models over vectors of the width that they are built with: 30 in 3 heads, or 512 in 8."""

    def example(is_small: bool) -> Any:
        width = 30 if is_small else 512
        return tuple(torch.randn(2, 6 + i, width) for i in range(inputs)), {}

    return Entry(name, "plain", "torch.nn", lambda s: make(30, 3) if s else make(512, 8), example, None, note)


ENTRIES = (
    sequence("mha_self", SelfAttention, note="nn.MultiheadAttention folds heads into the batch"),
    sequence("mha_cross", CrossAttention, inputs=2, note="separate projections of three widths; weights returned"),
    sequence("transformer_encoder", lambda w, h: Encoder(w, h, 44 if w == 30 else 4 * w, norm_first=False)),
    sequence("transformer_encoder_pre", lambda w, h: Encoder(w, h, 44 if w == 30 else 4 * w, norm_first=True)),
    sequence("transformer_decoder", lambda w, h: Decoder(w, h, 44 if w == 30 else 4 * w), inputs=2),
    sequence("transformer", lambda w, h: nn.Transformer(w, h, 1, 1, 44 if w == 30 else 4 * w, batch_first=True), inputs=2),
    sequence("einsum_attention", lambda w, h: EinsumAttention(w, h, 10 if w == 30 else 64)),
    plain(
        "lstm",
        lambda s: Recurrent(nn.LSTM, 11, 14) if s else Recurrent(nn.LSTM, 256, 512),
        tokens(7),
        note="the recurrence pins its hidden width",
    ),
    plain("lstm_bidirectional", lambda s: Recurrent(nn.LSTM, 11, 14, num_layers=2, bidirectional=True), tokens(7)),
    plain("gru", lambda s: Recurrent(nn.GRU, 11, 14) if s else Recurrent(nn.GRU, 256, 512), tokens(7)),
    sequence("tied_autoencoder", lambda w, h: TiedAutoencoder(w, w // 2 - 1)),
    plain(
        "tied_language_model",
        lambda s: TiedLanguageModel(53, 30, 44) if s else TiedLanguageModel(1000, 512, 2048),
        lambda: torch.randint(0, 53, (2, 7)),
    ),
    plain("parameter_twice", lambda s: Twice(22 if s else 512), tokens(7)),
    plain("buffers", lambda s: Buffers(22 if s else 512), tokens(7)),
    plain("parameter_list", lambda s: Lists(22 if s else 512), tokens(7)),
    plain("custom_op", lambda s: CustomOp(22 if s else 512), tokens(7)),
    Entry("unet", "plain", "torch.nn", lambda s: UNet(6 if s else 64, 2 if s else 4), image(16, 128)),
    Entry(
        "wavenet",
        "plain",
        "torch.nn",
        lambda s: WaveNet(10, 14, 3) if s else WaveNet(64, 128, 8),
        lambda s: ((torch.randn(2, 1, 40 if s else 4000),), {}),
    ),
    Entry("speech_m5", "plain", "torch.nn", lambda s: Speech(10 if s else 64), lambda s: ((torch.randn(2, 1, 400 if s else 8000),), {})),
    Entry("style_transfer", "plain", "torch.nn", lambda s: StyleTransfer(10 if s else 128), image(16, 128)),
    Entry("super_resolution", "plain", "torch.nn", lambda s: SuperResolution(10 if s else 64), image(8, 64)),
    plain("siamese", lambda s: Siamese(14 if s else 128), lambda: torch.randn(2, 7), lambda: torch.randn(2, 7)),
    plain("nerf", lambda s: Nerf(30 if s else 256), tokens(3)),
    plain("dlrm", lambda s: Recommender(14 if s else 64), lambda: torch.randn(2, 7), lambda: torch.randint(0, 11, (2, 3, 4))),
    plain("graph_attention", lambda s: GraphLayer(10, 3) if s else GraphLayer(64, 8), tokens(7), lambda: torch.randn(2, 6, 6)),
    Entry(
        "diffusion_block",
        "plain",
        "torch.nn",
        lambda s: Diffusion(20 if s else 128),
        lambda s: ((torch.randn(2, 3, 8, 8), torch.randn(2, 8)), {}),
    ),
)

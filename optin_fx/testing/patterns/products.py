"""Products of matrices, and attention."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from optin_fx.testing.patterns.pattern import Hidden, pattern, rows, tokens


@pattern(rows, {"a.weight:0": "free", "w:0": "free"})
class MatmulParameter(Hidden):
    """A loose matrix and the `@` of Python."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(12, 12))

    def between(self, x: Tensor) -> Tensor:
        return (x @ self.w).relu()


@pattern(rows, {"a.weight:0": "free", "w:1": "free", "bias:0": "free"})
class AddMM(Hidden):
    """GPT-2's Conv1D: weights are (in, out)."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.bias = nn.Parameter(torch.randn(12, 12)), nn.Parameter(torch.randn(12))

    def between(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x, self.w).relu()


@pattern(tokens, {"a.weight:0": "free", "b.weight:0": "free"})
class BatchedAddMM(Hidden):
    """baddbmm: scores with a bias added, over the tokens; `a` and `b` share the contracted width."""

    last = 5
    bias: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.b = nn.Linear(7, 12)
        self.register_buffer("bias", torch.randn(5, 5))

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.baddbmm(self.bias.expand(2, 5, 5), self.a(x), self.b(x).transpose(1, 2)))


@pattern(tokens, {"w:0": "pinned", "w:1": (3,), "w:2": (6,), "v:0": (3,), "v:2": "pinned"})
class EinsumSliced(nn.Module):
    """Einsum against a slice of a larger weight: heads 0 to 2 of four; the fourth is never read."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(7, 4, 6))
        self.v = nn.Parameter(torch.randn(3, 6, 5))

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("bthd,hdo->bto", torch.einsum("btc,chd->bthd", x, self.w[:, :3]), self.v)


@pattern(tokens, {"w:0": "free", "w:2": "free"})
class EinsumDiagonal(Hidden):
    """One matrix per group of channels (block-diagonal): groups and both widths are free."""

    last = 15

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(3, 4, 5))

    def between(self, x: Tensor) -> Tensor:
        return torch.einsum("btgi,gio->btgo", x.unflatten(-1, (3, 4)), self.w).flatten(-2)


@pattern(rows, {"a.weight:0": "free", "b.weight:0": "free"})
class Bilinear(Hidden):
    """x^T W y per output."""

    def __init__(self) -> None:
        super().__init__()
        self.b = nn.Linear(7, 10)
        self.form = nn.Bilinear(12, 10, 12)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.form(self.a(x), self.b(x)))


@pattern(tokens, {"qkv.weight:0": (3, 4), "out.weight:1": (3, 4)})
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


@pattern(tokens, {"qk.weight:0": (3, 4), "v.weight:0": (3, 5), "out.weight:1": (3, 5)})
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


@pattern(tokens, {"q.weight:0": (3, 5), "k.weight:0": (3, 5)})
class Rotary(nn.Module):
    """Rotary embedding of halves: dim i turns with dim i + 5, so five pairs per head."""

    cos: Tensor
    sin: Tensor

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


@pattern(tokens, {"q.weight:0": (3, 5), "k.weight:0": (3, 5)})
class RotaryInterleaved(nn.Module):
    """Rotary embedding of neighbours: dim 2i turns with dim 2i + 1."""

    cos: Tensor
    sin: Tensor

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


@pattern(tokens, {"q.weight:0": (3, 4), "talk.weight:1": (3,), "talk.weight:0": (3,), "v.weight:0": (3, 5)})
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


@pattern(tokens, {"a.weight:0": "pinned"})
class ChannelAttention(Hidden):
    """Attention in which channels are the tokens (XCiT, DaViT): they see each other in the softmax."""

    def between(self, x: Tensor) -> Tensor:
        weights = (x.mT @ x).softmax(-1)
        return x @ weights.mT

"""Small models of plain torch, in two sizes, so that engines are tested without the pruner."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import optin_fx as ofx


class Structured(nn.Module):
    """Dict in, keyword in, flag baked in; nested outputs with a None, a constant and an input handed through."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.up, self.down, self.norm = nn.Linear(8, width), nn.Linear(width, 8), nn.LayerNorm(8)

    def forward(self, batch: dict[str, torch.Tensor], scale: torch.Tensor, *, flag: bool = True) -> dict[str, Any]:
        hidden = self.norm(batch["x"] + self.down(nn.functional.gelu(self.up(batch["x"]))))
        hidden = hidden * scale[:, None, None]
        return {"hidden": hidden, "none": None, "pair": (hidden.mean(1), batch["x"]), "best": hidden.sum(1).argmax(-1)}


class Encoder(nn.Module):
    """Pre-norm attention and feed-forward, three layers."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.layers = nn.ModuleList(
            nn.ModuleDict(
                {
                    "norm": nn.LayerNorm(width),
                    "qkv": nn.Linear(width, 3 * heads * 16),
                    "out": nn.Linear(heads * 16, width),
                    "ffn": nn.Sequential(nn.LayerNorm(width), nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width)),
                }
            )
            for _ in range(3)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            query, key, value = layer["qkv"](layer["norm"](x)).unflatten(-1, (3, self.heads, 16)).permute(2, 0, 3, 1, 4)
            mixed = nn.functional.scaled_dot_product_attention(query, key, value)
            x = x + layer["out"](mixed.transpose(1, 2).flatten(2))
            x = x + layer["ffn"](x)
        return x


def convnet(channels: int) -> nn.Module:
    """Convolutions with BatchNorm whose statistics are not the initial ones."""
    model = nn.Sequential(
        nn.Conv2d(3, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU(),
        nn.Conv2d(channels, channels, 3, stride=2, padding=1), nn.BatchNorm2d(channels), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10),
    )  # fmt: skip
    for _ in range(3):
        model(torch.randn(8, 3, 16, 16) * 2 + 1)
    return model.eval()


@pytest.fixture(scope="session")
def structured() -> ofx.Program:
    torch.manual_seed(0)
    batch = torch.export.Dim("batch", max=16)
    shapes = {"batch": {"x": {0: batch}}, "scale": {0: batch}, "flag": None}
    return ofx.trace(Structured(), ({"x": torch.randn(2, 4, 8)},), {"scale": torch.rand(2), "flag": True}, shapes)


def structured_call(rows: int = 5) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return ({"x": torch.randn(rows, 4, 8)},), {"scale": torch.rand(rows), "flag": True}


@pytest.fixture
def call() -> Callable[..., tuple[tuple[Any, ...], dict[str, Any]]]:
    return structured_call


def encoder(heads: int, hidden: int) -> ofx.Program:
    torch.manual_seed(0)
    return ofx.trace(Encoder(64, heads, hidden), (torch.randn(2, 32, 64),), dynamic_shapes=({0: torch.export.Dim("batch", max=8)},))


@pytest.fixture(scope="session")
def dense() -> ofx.Program:
    return encoder(4, 256)


@pytest.fixture(scope="session")
def half() -> ofx.Program:
    return encoder(2, 128)


@pytest.fixture(scope="session")
def cnn() -> ofx.Program:
    torch.manual_seed(0)
    return ofx.trace(convnet(16), (torch.randn(2, 3, 16, 16),), dynamic_shapes=({0: torch.export.Dim("batch", max=8)},))

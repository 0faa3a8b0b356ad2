"""The model of the examples: a small convolutional classifier, and images for it. Put yours in its place."""

from __future__ import annotations

import torch
from torch import nn


def model() -> nn.Module:
    """Two convolutions and a head; (n, 3, 16, 16) to (n, 10)."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
        nn.Conv2d(32, 64, 3, stride=2, padding=1), nn.BatchNorm2d(64), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 128), nn.GELU(), nn.Linear(128, 10),
    ).eval()  # fmt: skip


def images(rows: int = 4, seed: int = 0) -> torch.Tensor:
    """Noise in the shape of images."""
    return torch.randn(rows, 3, 16, 16, generator=torch.Generator().manual_seed(seed))

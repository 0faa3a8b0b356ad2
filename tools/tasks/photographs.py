"""Photographs, and random views of them: crops of varying size and shape, mirrored, brighter or darker."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from . import cache

# What both sides see is small in number, so no photograph, animal or place is on both of them.
CALIBRATION = (
    "astronaut.png",
    "brick.png",
    "cheetah.jpg",
    "cheetah2.jpg",
    "china.jpg",
    "coins.png",
    "flower.jpg",
    "grass.png",
    "gravel.png",
    "hubble_deep_field.jpg",
    "retina.jpg",
    "imagenet_00_243.jpg",
    "imagenet_01_559.jpg",
    "imagenet_02_438.jpg",
    "imagenet_03_990.jpg",
    "imagenet_04_949.jpg",
    "imagenet_05_853.jpg",
    "imagenet_06_609.jpg",
    "imagenet_07_609.jpg",
    "imagenet_08_915.jpg",
    "imagenet_09_455.jpg",
    "imagenet_10_541.jpg",
    "imagenet_11_630.jpg",
    "imagenet_12_741.jpg",
    "imagenet_13_471.jpg",
    "imagenet_14_129.jpg",
    "imagenet_15_99.jpg",
    "imagenet_16_251.jpg",
    "imagenet_17_22.jpg",
    "imagenet_18_317.jpg",
    "imagenet_19_305.jpg",
)
EVALUATION = (
    "camera.png",
    "chelsea.png",
    "coffee.png",
    "lion.jpg",
    "motorcycle_left.png",
    "rocket.jpg",
    "tower.jpg",
)


@dataclass(frozen=True)
class View:
    """How one picture is made from a photograph: a box (left, top, right, bottom in pixels), a mirror, two tones."""

    box: tuple[float, float, float, float]
    mirrored: bool
    brightness: float
    contrast: float


def draw(width: int, height: int, generator: torch.Generator, *, least: float = 0.1, tone: float = 0.2) -> View:
    """A random view: area `least`..1 of the photograph, aspect 3:4 to 4:3, tones within ±`tone`."""

    def uniform(low: float, high: float) -> float:
        return low + (high - low) * torch.rand((), generator=generator, dtype=torch.float64).item()

    area = uniform(least, 1.0) * width * height
    aspect = math.exp(uniform(math.log(3 / 4), math.log(4 / 3)))
    across = min(float(width), math.sqrt(area * aspect))
    down = min(float(height), math.sqrt(area / aspect))
    left, top = uniform(0, width - across), uniform(0, height - down)
    return View((left, top, left + across, top + down), uniform(0, 1) < 0.5, uniform(1 - tone, 1 + tone), uniform(1 - tone, 1 + tone))


def render(photo: Any, view: View, size: int) -> Tensor:
    """The view as a tensor (3, size, size) in -1..1, the scale that the network was trained with."""
    import numpy
    from PIL import Image

    picture = photo.resize((size, size), Image.Resampling.BICUBIC, box=view.box)
    pixels = torch.from_numpy(numpy.array(picture)).permute(2, 0, 1).float() / 127.5 - 1
    if view.mirrored:
        pixels = pixels.flip(-1)
    mean = pixels.mean()
    return ((pixels - mean) * view.contrast + mean + (view.brightness - 1)).clamp(-1, 1).contiguous()


@lru_cache(maxsize=32)
def load(name: str) -> Any:
    """A photograph as a PIL image in RGB; grey ones have three equal channels."""
    from PIL import Image

    with Image.open(cache.data(f"photos/{name}")) as opened:
        return opened.convert("RGB")


def views(names: Sequence[str], n: int, size: int, seed: int) -> Tensor:
    """`n` random views (n, 3, size, size), the photographs taken in turn.

    Channels are innermost in memory (`torch.channels_last`): PyTorch's CPU convolutions are about twice as fast on them.
    """
    generator = torch.Generator().manual_seed(seed)
    made = []
    for index in range(n):
        photo = load(names[index % len(names)])
        width, height = photo.size
        made.append(render(photo, draw(width, height, generator), size))
    return torch.stack(made).contiguous(memory_format=torch.channels_last)

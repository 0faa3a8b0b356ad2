"""`mnist-resnet`: which digit? A small residual network with BatchNorm; accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from . import training
from .digits import DigitTask


class Block(nn.Module):
    """Two 3 x 3 convolutions around a shortcut, which is a 1 x 1 convolution where the shape changes."""

    def __init__(self, width_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width_in, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.act = nn.ReLU()
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or width_in != width:
            self.shortcut = nn.Sequential(nn.Conv2d(width_in, width, 1, stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        inner = self.bn2(self.conv2(self.act(self.bn1(self.conv1(x)))))
        return self.act(inner + self.shortcut(x))


class SmallResNet(nn.Module):
    """Stages of two blocks, each after the first at half the resolution; mean over positions; one linear layer."""

    def __init__(self, widths: Sequence[int] = (16, 32, 64), classes: int = 10) -> None:
        super().__init__()
        first = widths[0]
        self.stem = nn.Sequential(nn.Conv2d(1, first, 3, padding=1, bias=False), nn.BatchNorm2d(first), nn.ReLU())
        stages = []
        for number, (width_in, width) in enumerate(zip((first, *widths), widths, strict=False)):
            stages.append(nn.Sequential(Block(width_in, width, 2 if number else 1), Block(width, width, 1)))
        self.stages = nn.Sequential(*stages)
        self.head = nn.Linear(widths[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stages(self.stem(x)).mean((-2, -1)))


@dataclass(frozen=True)
class MnistResNet(DigitTask):
    """Widths 16, 32 and 64, six blocks: 0.17 million parameters."""

    name: ClassVar[str] = "mnist-resnet"
    recipe: ClassVar[training.Recipe] = training.Recipe(epochs=15, rate=3e-3, batch=64, decay=0.01, threads=1)

    def bare(self) -> nn.Module:
        return SmallResNet()

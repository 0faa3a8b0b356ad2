"""`mnist-vit`: which digit? A small timm ViT on 49 patches of 4 x 4 pixels; accuracy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from . import training
from .digits import DigitTask


@dataclass(frozen=True)
class MnistViT(DigitTask):
    """Width 96, 6 blocks, 3 heads of 32, feed-forward 384: 0.68 million parameters."""

    name: ClassVar[str] = "mnist-vit"
    recipe: ClassVar[training.Recipe] = training.Recipe(epochs=30, rate=2e-3, batch=64, decay=0.05, threads=1)

    def bare(self) -> nn.Module:
        from timm.models.vision_transformer import VisionTransformer

        return VisionTransformer(img_size=28, patch_size=4, in_chans=1, num_classes=10, embed_dim=96, depth=6, num_heads=3)

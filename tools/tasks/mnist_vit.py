"""`mnist-vit`: which digit? A small timm ViT on 16 patches of 7 x 7 pixels; accuracy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from . import training
from .digits import DigitTask


@dataclass(frozen=True)
class MnistViT(DigitTask):
    """Width 96, 6 blocks, 3 heads of 32, feed-forward 384: 0.68 million parameters.

    With 4,000 digits and a few minutes it has to learn fast: few tokens (so more epochs), their mean instead of a class
    token, and Xavier's initial weights, as timm's default of 0.02 is far too small for this width.
    """

    name: ClassVar[str] = "mnist-vit"
    recipe: ClassVar[training.Recipe] = training.Recipe(epochs=70, rate=1e-3, batch=32, decay=0.05, threads=1)

    def bare(self) -> nn.Module:
        from timm.models.vision_transformer import VisionTransformer

        return VisionTransformer(
            img_size=28,
            patch_size=7,
            in_chans=1,
            num_classes=10,
            embed_dim=96,
            depth=6,
            num_heads=3,
            class_token=False,
            global_pool="avg",
            weight_init="jax",
        )

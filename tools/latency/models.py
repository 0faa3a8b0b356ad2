"""The models of the latency table, at their published depth and width. Weights are random, for only shapes matter to a latency."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch import nn

import optin_fx as ofx
from optin_fx.testing.zoo.entry import randomise

Made = tuple[nn.Module, tuple[Any, ...], dict[str, Any]]
TOKENS = 128
MINILM = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}


@dataclass(frozen=True)
class Bench:
    """One model of the table.

    Attributes:
        make: returns the module, args and kwargs; a batch of two rows.
        size: of one row, as the table says it.
        goal: what speed-up / (dense FLOPs / FLOPs kept) should reach at batch 8; 1 is where all of the saved FLOPs become saved time.
    """

    make: Callable[[], Made]
    size: str
    goal: float

    def program(self, seed: int = 0) -> ofx.Program:
        """The dense program; its batch is dynamic."""
        torch.manual_seed(seed)
        model, args, kwargs = self.make()
        batch = {0: torch.export.Dim("batch", max=64)}
        shapes = dict.fromkeys(kwargs, batch) if kwargs else tuple(batch for _ in args)
        return ofx.trace(randomise(model.eval(), seed), args, kwargs, shapes)


def texts(count: int, tokens: int) -> dict[str, torch.Tensor]:
    """Random ids without padding, as a BERT takes them."""
    ids = torch.randint(1000, 20_000, (count, tokens))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def bert(**sizes: int) -> Made:
    """transformers' BertModel on rows without padding."""
    transformers = import_module("transformers")
    model = transformers.BertModel(transformers.BertConfig(**sizes), add_pooling_layer=False)
    return model, (), texts(2, TOKENS)


def timm(name: str) -> Made:
    """A timm classifier at 224 x 224 pixels."""
    return import_module("timm").create_model(name, pretrained=False), (torch.randn(2, 3, 224, 224),), {}


def mask2former() -> Made:
    """Mask2Former with a Swin-T backbone, as published for Cityscapes, at 256 x 256 pixels."""
    transformers = import_module("transformers")
    swin = transformers.SwinConfig(
        embed_dim=96, depths=[2, 2, 6, 2], num_heads=[3, 6, 12, 24], window_size=7, out_features=["stage1", "stage2", "stage3", "stage4"]
    )
    config = transformers.Mask2FormerConfig(backbone_config=swin, num_labels=19)
    return transformers.Mask2FormerForUniversalSegmentation(config), (), {"pixel_values": torch.randn(2, 3, 256, 256)}


MODELS: dict[str, Bench] = {
    "minilm": Bench(lambda: bert(**MINILM), f"{TOKENS} tokens", 0.95),
    "bert-base": Bench(bert, f"{TOKENS} tokens", 0.95),
    "deit-s": Bench(lambda: timm("deit_small_patch16_224"), "224 px", 0.95),
    "swin-t": Bench(lambda: timm("swin_tiny_patch4_window7_224"), "224 px", 0.95),
    "mask2former-swin-t": Bench(mask2former, "256 px", 0.95),
    "resnet50": Bench(lambda: timm("resnet50"), "224 px", 0.8),
    "efficientnet-b0": Bench(lambda: timm("efficientnet_b0"), "224 px", 0.8),
}

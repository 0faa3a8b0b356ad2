"""Vision transformers, from timm and torchvision."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from optin_fx.testing.zoo import entry
from optin_fx.testing.zoo.entry import Entry, image

TIMM_VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 30, "depth": 2, "num_heads": 3, "num_classes": 5}
TIMM_BASE = {"depth": 2}
TIMM_SWIN = {"img_size": 32, "patch_size": 2, "embed_dim": 18, "depths": (2, 2), "num_heads": (3, 6), "window_size": 4, "num_classes": 5}


timm = partial(entry.timm_model, "vision", base=(TIMM_VIT, TIMM_BASE))
direct = partial(entry.timm_class, "vision")


def _mvit(is_small: bool) -> torch.nn.Module:
    from torchvision.models.video.mvit import MSBlockConfig, MViT

    def block(heads: int, ins: int, outs: int, q: list[int], kv: list[int]) -> Any:
        return MSBlockConfig(
            num_heads=heads, input_channels=ins, output_channels=outs, kernel_q=[3, 3, 3], kernel_kv=[3, 3, 3], stride_q=q, stride_kv=kv
        )

    if is_small:
        blocks = [block(1, 10, 10, [1, 1, 1], [1, 2, 2]), block(2, 10, 20, [1, 2, 2], [1, 1, 1]), block(2, 20, 20, [1, 1, 1], [1, 1, 1])]
        return MViT((32, 32), 4, blocks, True, True, True, True, num_classes=5)
    blocks = [block(1, 96, 96, [1, 1, 1], [1, 8, 8]), block(2, 96, 192, [1, 2, 2], [1, 4, 4]), block(4, 192, 384, [1, 2, 2], [1, 2, 2])]
    return MViT((224, 224), 16, blocks, True, True, True, True)


ENTRIES = (
    timm("vit_timm", "vit_small_patch16_224", note="fused qkv by reshape and unbind"),
    timm("deit_timm", "deit_tiny_patch16_224", note="three heads beside the three of qkv"),
    timm("deit_distilled_timm", "deit_tiny_distilled_patch16_224"),
    timm("deit3_timm", "deit3_small_patch16_224", note="layer scale"),
    timm("beit_timm", "beit_base_patch16_224", note="qkv bias by cat with a buffer of zeros"),
    timm("dinov2_timm", "vit_small_patch14_reg4_dinov2", {"reg_tokens": 2}, real_size=518),
    timm("vit_gap_timm", "vit_small_patch16_36x1_224", {"class_token": False, "global_pool": "avg"}),
    timm(
        "vit_qknorm_timm",
        "vit_little_patch16_reg4_gap_256",
        {"reg_tokens": 2, "num_heads": 3},
        {"depth": 2},
        real_size=256,
        note="layer scale and norms of q and k",
    ),
    timm("vit_parallel_timm", "vit_small_patch16_18x2_224", note="parallel blocks"),
    timm("vit_siglip_timm", "vit_base_patch16_siglip_224", note="attention pooling"),
    timm(
        "eva02",
        "eva02_tiny_patch14_224",
        {"depth": 2, "embed_dim": 36},
        real_size=224,
        note="rotary over patches, SwiGLU with a norm inside, separate q, k, v",
    ),
    timm("eva", "eva_giant_patch14_224", real={"depth": 2, "embed_dim": 384, "num_heads": 6}, note="fused qkv with cat bias"),
    timm("swin_timm", "swin_tiny_patch4_window7_224", base=(TIMM_SWIN, {"depths": (2, 2, 2, 2)})),
    timm("swinv2_timm", "swinv2_tiny_window8_256", base=(TIMM_SWIN, {"depths": (2, 2, 2, 2)}), real_size=256),
    timm(
        "swinv2_cr_timm",
        "swinv2_cr_tiny_ns_224",
        base=({**TIMM_SWIN, "patch_size": 4}, {"depths": (2, 2, 2, 2)}),
        note="norms after the blocks, log-distance bias",
    ),
    timm(
        "pvt_v2_timm",
        "pvt_v2_b0",
        base=(
            {"depths": (1, 1, 1, 1), "embed_dims": (12, 20, 36, 40), "num_heads": (1, 2, 3, 5), "num_classes": 5},
            {"depths": (1, 1, 1, 1)},
        ),
    ),
    timm(
        "twins_svt",
        "twins_svt_small",
        base=(
            {
                "img_size": 64,
                "depths": (2, 2, 1, 1),
                "embed_dims": (12, 24, 36, 48),
                "num_heads": (2, 3, 3, 4),
                "wss": (4, 4, 2, 2),
                "num_classes": 5,
            },
            {"depths": (2, 2, 2, 2)},
        ),
        size=64,
        note="local windows and global sub-sampled attention",
    ),
    timm(
        "crossvit",
        "crossvit_9_240",
        base=(
            {
                "img_size": 48,
                "img_scale": (1.0, 1.0),
                "patch_size": (12, 16),
                "embed_dim": (18, 30),
                "depth": ((1, 1, 0),),
                "num_heads": (3, 3),
                "mlp_ratio": (2, 2, 1),
                "num_classes": 5,
            },
            {},
        ),
        size=48,
        real_size=240,
        note="two branches that exchange class tokens",
    ),
    timm(
        "pit",
        "pit_ti_224",
        base=({"img_size": 64, "base_dims": (10, 10, 10), "depth": (1, 1, 1), "heads": (3, 6, 12), "num_classes": 5}, {"depth": (1, 1, 1)}),
        size=64,
    ),
    timm(
        "convit",
        "convit_tiny",
        base=({**TIMM_VIT, "local_up_to_layer": 1}, {"depth": 4, "local_up_to_layer": 2}),
        note="gated positional attention",
    ),
    timm(
        "visformer",
        "visformer_tiny",
        base=(
            {"img_size": 64, "init_channels": 8, "embed_dim": 24, "depth": (1, 1, 1), "num_heads": 3, "group": 4, "num_classes": 5},
            {"depth": (2, 2, 2)},
        ),
        size=64,
    ),
    timm(
        "hiera_timm",
        "hiera_tiny_224",
        base=({"img_size": (64, 64), "embed_dim": 12, "num_heads": 1, "stages": (1, 1, 1, 1), "num_classes": 5}, {"stages": (1, 2, 2, 1)}),
        size=64,
    ),
    timm(
        "davit",
        "davit_tiny",
        base=(
            {"depths": (1, 1), "embed_dims": (18, 36), "num_heads": (3, 3), "window_size": 4, "num_classes": 5},
            {"depths": (1, 1, 1, 1)},
        ),
        size=64,
        note="channel attention",
    ),
    direct(
        "gcvit",
        "gcvit",
        "GlobalContextVit",
        {"img_size": 64, "embed_dim": 12, "depths": (1, 1), "num_heads": (2, 3), "window_size": (4, 4)},
        {"depths": (1, 1, 1, 1)},
        size=64,
        note="global queries, squeeze-excite",
    ),
    direct(
        "nest",
        "nest",
        "Nest",
        {"img_size": 32, "patch_size": 4, "num_levels": 2, "embed_dims": (18, 30), "num_heads": (3, 3), "depths": (1, 1)},
        {"depths": (1, 1, 2)},
        note="blocks of the image as a batch",
    ),
    direct(
        "volo",
        "volo",
        "VOLO",
        {
            "img_size": 32,
            "layers": (1, 1),
            "embed_dims": (18, 30),
            "num_heads": (3, 3),
            "mlp_ratio": (2, 2),
            "downsamples": (True, False),
            "outlook_attention": (True, False),
            "stem_hidden_dim": 8,
            "post_layers": ("ca", "ca"),
        },
        {
            "layers": (2, 2),
            "embed_dims": (192, 384),
            "num_heads": (6, 12),
            "downsamples": (True, False),
            "outlook_attention": (True, False),
            "post_layers": ("ca", "ca"),
        },
        note="outlook attention: unfold, fold",
    ),
    Entry(
        "swin_torchvision",
        "vision",
        "torchvision:swin_t",
        lambda s: (
            __import__("torchvision").models.SwinTransformer([2, 2], 18, [2, 2], [3, 3], [4, 4], num_classes=5)
            if s
            else entry.vision("swin_t", {})(s)
        ),
        image(32, 224),
    ),
    Entry(
        "vit_torchvision",
        "vision",
        "torchvision:vit_b_16",
        lambda s: (
            __import__("torchvision").models.VisionTransformer(32, 8, 2, 3, 30, 44, num_classes=5)
            if s
            else __import__("torchvision").models.VisionTransformer(224, 16, 2, 12, 768, 3072)
        ),
        image(32, 224),
        None,
        "nn.MultiheadAttention",
    ),
    Entry(
        "mvit_v2",
        "vision",
        "torchvision:mvit_v2_s",
        lambda s: _mvit(s),
        lambda s: ((torch.randn(2, 3, 4, 32, 32) if s else torch.randn(2, 3, 16, 224, 224),), {}),
        None,
        "video; pooled attention",
    ),
)

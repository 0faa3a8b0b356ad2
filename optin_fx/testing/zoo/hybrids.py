"""Networks that mix convolution, attention and mixing layers, from timm and transformers."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from importlib import import_module
from typing import Any

import torch

from optin_fx.testing.zoo import entry
from optin_fx.testing.zoo.entry import Entry, image

timm = partial(entry.timm_model, "hybrids")
direct = partial(entry.timm_class, "hybrids")


def former(name: str, mixers: Any, small: Mapping[str, Any], *, note: str = "") -> Entry:
    """MetaFormers; the names of their parts are looked up in timm's module."""

    def build(is_small: bool) -> torch.nn.Module:
        library = import_module("timm.models.metaformer")

        def part(value: Any) -> Any:
            return [part(v) for v in value] if isinstance(value, list) else getattr(library, value) if isinstance(value, str) else value

        sizes = (
            {"depths": (1, 1, 1, 1), "dims": (10, 14, 32, 64), "num_classes": 5}
            if is_small
            else {"depths": (1, 1, 1, 1), "dims": (64, 128, 320, 512)}
        )
        return library.MetaFormer(token_mixers=part(mixers), **{k: part(v) for k, v in small.items()}, **sizes)

    return Entry(name, "hybrids", "timm:MetaFormer", build, image(64, 224), None, note)


MAX = {"img_size": 64, "depths": (1, 1), "embed_dim": (32, 96), "stem_width": 10}
COAT = {"img_size": 64, "depths": (1, 1, 1, 1), "embed_dim": (10, 32, 32, 96), "stem_width": 10}
XCIT = {"img_size": 32, "patch_size": 8, "embed_dim": 36, "depth": 2, "num_heads": 3}

ENTRIES = (
    timm(
        "maxvit",
        "maxvit_rmlp_pico_rw_256",
        MAX,
        size=64,
        real_size=256,
        note="window and grid attention with a relative-position MLP, MBConv",
    ),
    timm("maxvit_bias", "maxvit_nano_rw_256", MAX, size=64, real_size=256, note="relative-position table"),
    timm("coatnet", "coatnet_nano_rw_224", COAT, size=64, note="MBConv stages, then transformer stages"),
    direct(
        "coat",
        "coat",
        "CoaT",
        {
            "img_size": 32,
            "patch_size": 4,
            "embed_dims": (24, 32, 40, 40),
            "serial_depths": (1, 1, 1, 1),
            "parallel_depth": 0,
            "num_heads": 8,
            "mlp_ratios": (2, 2, 2, 2),
        },
        {
            "patch_size": 4,
            "embed_dims": (64, 128, 256, 320),
            "serial_depths": (2, 2, 2, 2),
            "parallel_depth": 0,
            "num_heads": 8,
            "mlp_ratios": (8, 8, 4, 4),
        },
        note="factorised attention with convolutional relative positions, heads split over kernels",
    ),
    direct(
        "levit",
        "levit",
        "Levit",
        {"img_size": 64, "embed_dim": (24, 36), "key_dim": 10, "depth": (1, 1), "num_heads": (3, 5), "attn_ratio": 2, "mlp_ratio": 2},
        {"embed_dim": (128, 256, 384), "key_dim": 16, "depth": (2, 2, 2), "num_heads": (4, 6, 8)},
        size=64,
        note="BatchNorm'd attention with values wider than keys; cached bias",
    ),
    direct(
        "levit_conv",
        "levit",
        "Levit",
        {
            "img_size": 64,
            "embed_dim": (24, 36),
            "key_dim": 10,
            "depth": (1, 1),
            "num_heads": (3, 5),
            "attn_ratio": 2,
            "mlp_ratio": 2,
            "use_conv": True,
        },
        {"embed_dim": (128, 256), "key_dim": 16, "depth": (2, 2), "num_heads": (4, 6), "use_conv": True},
        size=64,
        note="the same with 1x1 conv",
    ),
    timm(
        "efficientformer",
        "efficientformer_l1",
        {"depths": (1, 1, 1, 2), "embed_dims": (10, 14, 18, 22), "num_vit": 1},
        {"depths": (1, 1, 2, 2)},
        size=224,
        note="pooling mixers, then attention of a fixed 7x7 grid",
    ),
    timm(
        "efficientformer_v2",
        "efficientformerv2_s0",
        {"img_size": 64, "depths": (1, 1, 1, 1), "embed_dims": (10, 14, 18, 22)},
        {},
        size=64,
        note="talking heads, strided attention",
    ),
    timm(
        "fastvit",
        "fastvit_t8",
        {"layers": (1, 1, 1, 1), "embed_dims": (12, 24, 24, 48)},
        {"layers": (1, 1, 1, 1)},
        size=64,
        note="re-parametrisable token mixers",
    ),
    timm(
        "fastvit_attention",
        "fastvit_sa12",
        {"layers": (1, 1, 1, 1), "embed_dims": (12, 24, 48, 96)},
        {"layers": (1, 1, 1, 1)},
        size=64,
        note="attention in the last stage",
    ),
    former(
        "poolformer",
        "Pooling",
        {"norm_layers": "GroupNorm1", "layer_scale_init_values": 0.1, "res_scale_init_values": None, "use_mlp_head": False},
        note="pooling as token mixer, GroupNorm of one group",
    ),
    former(
        "poolformer_v2",
        "Pooling",
        {"norm_layers": "GroupNorm1NoBias", "mlp_act": "StarReLU", "use_mlp_head": False},
        note="StarReLU, residual scale",
    ),
    former("convformer", "SepConv", {"norm_layers": "LayerNorm2dNoBias"}, note="separable conv as token mixer"),
    former(
        "caformer",
        ["SepConv", "SepConv", "Attention", "Attention"],
        {"norm_layers": ["LayerNorm2dNoBias", "LayerNorm2dNoBias", "LayerNormNoBias", "LayerNormNoBias"]},
        note="head dim 32: one and two heads",
    ),
    timm("resmlp", "resmlp_12_224", {}, {}, size=224, note="affine in place of norms"),
    direct(
        "mlp_mixer",
        "mlp_mixer",
        "MlpMixer",
        {"img_size": 32, "patch_size": 8, "num_blocks": 2, "embed_dim": 30},
        {"num_blocks": 2, "embed_dim": 768},
        note="an MLP over tokens",
    ),
    timm("gmlp", "gmlp_ti16_224", {}, {}, size=224, note="spatial gating unit"),
    timm("xcit", "xcit_nano_12_p16_224", XCIT, {"depth": 2}, note="attention over channels of normalised keys"),
    timm(
        "cait",
        "cait_xxs24_224",
        {"img_size": 32, "patch_size": 8, "embed_dim": 30, "depth": 2, "num_heads": 3},
        {"depth": 2},
        note="layer scale, talking heads, class attention",
    ),
    direct(
        "tnt",
        "tnt",
        "TNT",
        {"img_size": 32, "patch_size": 8, "embed_dim": 30, "inner_dim": 12, "depth": 2, "num_heads_inner": 2, "num_heads_outer": 3},
        {"depth": 2, "embed_dim": 384, "inner_dim": 24, "num_heads_outer": 6},
        note="transformer in transformer",
    ),
    direct(
        "efficientvit_mit",
        "efficientvit_mit",
        "EfficientVit",
        {"widths": (8, 12, 16, 24), "depths": (1, 1, 1, 1), "head_dim": 6, "head_widths": (40, 44), "expand_ratio": 2},
        {"widths": (8, 16, 32, 64), "depths": (1, 2, 2, 2), "head_dim": 16, "head_widths": (1024, 1280)},
        size=64,
        note="ReLU linear attention at several scales",
    ),
    timm("efficientvit_msra", "efficientvit_m0", {}, {}, size=64, note="cascaded heads: chunks of the channels"),
    direct(
        "tiny_vit",
        "tiny_vit",
        "TinyVit",
        {"embed_dims": (8, 18, 24, 30), "depths": (1, 1, 1, 1), "num_heads": (1, 3, 3, 3), "window_sizes": (4, 4, 4, 4)},
        {"embed_dims": (64, 128, 160, 320), "depths": (1, 1, 1, 1), "num_heads": (2, 4, 5, 10)},
        size=64,
        note="MBConv, then windows with biases",
    ),
    timm("repghost", "repghostnet_050", {}, note="GhostNet with branches in place of cat"),
    timm(
        "mambaout",
        "mambaout_femto",
        {"depths": (1, 1, 1, 1), "dims": (10, 14, 22, 26)},
        {"depths": (1, 1, 1, 1)},
        note="gated CNN: a split of the projection, conv on a part of it",
    ),
    timm("mobilevit_timm", "mobilevit_xxs", {}, {}, size=64, real_size=256),
    timm("mobilevitv2_timm", "mobilevitv2_050", {}, {}, size=64, real_size=256),
    timm("nextvit", "nextvit_small", {}, {}, size=64, note="cat of a conv part and an attention part"),
    timm("rdnet", "rdnet_tiny", {}, {}, size=64, note="DenseNet again, with ConvNeXt blocks"),
    timm("vitamin", "vitamin_small_224", {}, {}, size=224),
    timm("shvit", "shvit_s1", {}, {}, size=64, note="attention over a part of the channels, by split"),
    timm("swiftformer_timm", "swiftformer_xs", {}, {}, size=64),
    timm(
        "sequencer",
        "sequencer2d_s",
        {"layers": (1, 1, 1, 1), "embed_dims": (10, 14, 14, 14), "hidden_sizes": (4, 6, 6, 6)},
        {"layers": (1, 1, 1, 1)},
        note="bidirectional LSTMs over rows and columns: pins them",
    ),
)

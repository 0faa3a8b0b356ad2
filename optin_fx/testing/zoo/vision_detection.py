"""Detectors and segmenters, from transformers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from optin_fx.testing.zoo.entry import Entry, Inputs, batch_only, hf, nested, pixels

DETR = {
    "d_model": 36,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "encoder_attention_heads": 3,
    "decoder_attention_heads": 3,
    "encoder_ffn_dim": 44,
    "decoder_ffn_dim": 46,
    "num_queries": 7,
    "num_labels": 5,
}
DETR_REAL = {"encoder_layers": 2, "decoder_layers": 2}
SWIN_BACKBONE = nested(
    "SwinConfig",
    {
        "image_size": 64,
        "patch_size": 4,
        "embed_dim": 12,
        "depths": [2, 1, 1, 1],
        "num_heads": [3, 3, 3, 3],
        "window_size": 4,
        "out_features": ["stage1", "stage2", "stage3", "stage4"],
    },
    {"image_size": 224, "depths": [2, 2, 2, 2], "out_features": ["stage1", "stage2", "stage3", "stage4"]},
)


def _detr(model: str, config: str, small: Mapping[str, Any], real: Mapping[str, Any]) -> Callable[[bool], nn.Module]:
    """Detectors with a ResNet of transformers as backbone (their default, a timm one, downloads weights)."""
    backbone = nested(
        "ResNetConfig",
        {
            "embedding_size": 10,
            "hidden_sizes": [12, 20, 28, 36],
            "depths": [1, 1, 1, 1],
            "layer_type": "basic",
            "out_features": ["stage2", "stage3", "stage4"],
        },
        {"depths": [1, 1, 1, 1], "out_features": ["stage2", "stage3", "stage4"]},
    )
    both = {"use_timm_backbone": False, "use_pretrained_backbone": False, "backbone": None, "backbone_config": backbone}
    return hf(model, config, small, real, both=both)


def _sam_inputs(is_small: bool) -> Inputs:
    size = 64 if is_small else 1024
    return (), {"pixel_values": torch.randn(2, 3, size, size), "input_points": torch.rand(2, 1, 3, 2) * size}


ENTRIES = (
    Entry(
        "sam",
        "vision",
        "transformers:SamModel",
        hf(
            "SamModel",
            "SamConfig",
            {
                "vision_config": {
                    "hidden_size": 30,
                    "num_hidden_layers": 2,
                    "num_attention_heads": 3,
                    "image_size": 64,
                    "patch_size": 8,
                    "window_size": 3,
                    "global_attn_indexes": [1],
                    "output_channels": 24,
                    "mlp_dim": 44,
                    "mlp_ratio": 2.0,
                    "num_pos_feats": 12,
                },
                "prompt_encoder_config": {"hidden_size": 24, "image_size": 64, "patch_size": 8, "mask_input_channels": 8},
                "mask_decoder_config": {"hidden_size": 24, "num_attention_heads": 3, "mlp_dim": 40, "iou_head_hidden_dim": 28},
            },
            {"vision_config": {"num_hidden_layers": 2, "global_attn_indexes": [1]}},
        ),
        _sam_inputs,
        lambda: {"pixel_values": {0: torch.export.Dim.DYNAMIC}, "input_points": {0: torch.export.Dim.DYNAMIC}},
        "windows, relative positions, two-way mask decoder",
    ),
    Entry(
        "detr",
        "vision",
        "transformers:DetrForObjectDetection",
        _detr("DetrForObjectDetection", "DetrConfig", DETR, DETR_REAL),
        pixels(64, 512),
        batch_only("pixel_values"),
        "ResNet, sine positions from a mask, encoder-decoder",
    ),
    Entry(
        "conditional_detr",
        "vision",
        "transformers:ConditionalDetrForObjectDetection",
        _detr("ConditionalDetrForObjectDetection", "ConditionalDetrConfig", DETR, DETR_REAL),
        pixels(64, 512),
        batch_only("pixel_values"),
        "content and position concatenated per head",
    ),
    Entry(
        "table_transformer",
        "vision",
        "transformers:TableTransformerForObjectDetection",
        _detr("TableTransformerForObjectDetection", "TableTransformerConfig", DETR, DETR_REAL),
        pixels(64, 512),
        batch_only("pixel_values"),
    ),
    Entry(
        "deformable_detr",
        "vision",
        "transformers:DeformableDetrForObjectDetection",
        _detr("DeformableDetrForObjectDetection", "DeformableDetrConfig", {**DETR, "d_model": 96}, DETR_REAL),
        pixels(64, 512),
        batch_only("pixel_values"),
        "sampling offsets and weights with heads at different strides",
    ),
    Entry(
        "rt_detr",
        "vision",
        "transformers:RTDetrForObjectDetection",
        hf(
            "RTDetrForObjectDetection",
            "RTDetrConfig",
            {
                "d_model": 24,
                "encoder_hidden_dim": 24,
                "encoder_in_channels": [20, 28, 36],
                "encoder_ffn_dim": 44,
                "encoder_attention_heads": 3,
                "decoder_in_channels": [24, 24, 24],
                "decoder_attention_heads": 3,
                "decoder_layers": 2,
                "decoder_ffn_dim": 46,
                "num_queries": 7,
                "num_denoising": 0,
                "num_labels": 5,
                "encoder_layers": 1,
                "backbone_config": nested(
                    "RTDetrResNetConfig",
                    {
                        "embedding_size": 10,
                        "hidden_sizes": [12, 20, 28, 36],
                        "depths": [1, 1, 1, 1],
                        "layer_type": "bottleneck",
                        "out_features": ["stage2", "stage3", "stage4"],
                    },
                    {},
                ),
            },
            {"decoder_layers": 2},
        ),
        pixels(64, 640),
        None,
        "hybrid encoder with CSP and RepVGG blocks; queries by topk",
    ),
    Entry(
        "maskformer",
        "vision",
        "transformers:MaskFormerForInstanceSegmentation",
        hf(
            "MaskFormerForInstanceSegmentation",
            "MaskFormerConfig",
            {
                "backbone_config": SWIN_BACKBONE,
                "decoder_config": nested("DetrConfig", {**DETR, "backbone_config": None}, {}),
                "fpn_feature_size": 64,
                "mask_feature_size": 22,
                "num_labels": 5,
            },
            {"backbone_config": SWIN_BACKBONE, "decoder_config": nested("DetrConfig", {}, {"decoder_layers": 2})},
        ),
        pixels(64, 384),
        batch_only("pixel_values"),
        "Swin, pixel decoder, DETR decoder",
    ),
    Entry(
        "mask2former",
        "vision",
        "transformers:Mask2FormerForUniversalSegmentation",
        hf(
            "Mask2FormerForUniversalSegmentation",
            "Mask2FormerConfig",
            {
                "backbone_config": SWIN_BACKBONE,
                "feature_size": 96,
                "mask_feature_size": 22,
                "hidden_dim": 96,
                "encoder_feedforward_dim": 44,
                "dim_feedforward": 46,
                "num_attention_heads": 3,
                "encoder_layers": 1,
                "decoder_layers": 3,
                "num_queries": 7,
                "num_labels": 5,
            },
            {"backbone_config": SWIN_BACKBONE, "encoder_layers": 2, "decoder_layers": 3},
        ),
        pixels(64, 384),
        batch_only("pixel_values"),
        "Swin, deformable pixel decoder, masked attention",
    ),
)

"""Vision transformers, also those that read text, from transformers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from optin_fx.testing.zoo.entry import Entry, Inputs, batch_only, hf, nested, pixels

VIT = {
    "hidden_size": 30,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 44,
    "image_size": 32,
    "patch_size": 8,
    "num_labels": 5,
}
VIT_BASE = {"num_hidden_layers": 2, "num_labels": 1000}
SWIN = {"image_size": 32, "patch_size": 2, "embed_dim": 18, "depths": [2, 2], "num_heads": [3, 6], "window_size": 4, "num_labels": 5}
SWIN_TINY = {"depths": [2, 2, 2, 2], "num_labels": 1000}


def classifier(
    name: str,
    model: str,
    config: str,
    small: Mapping[str, Any] | None = None,
    real: Mapping[str, Any] | None = None,
    *,
    base: tuple[Mapping[str, Any], Mapping[str, Any]] = (VIT, VIT_BASE),
    size: int = 32,
    real_size: int = 224,
    note: str = "",
) -> Entry:
    return Entry(
        name,
        "vision",
        f"transformers:{model}",
        hf(model, config, {**base[0], **(small or {})}, {**base[1], **(real or {})}),
        pixels(size, real_size),
        batch_only("pixel_values"),
        note,
    )


CLIP_TEXT = {
    "vocab_size": 53,
    "hidden_size": 30,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 44,
    "max_position_embeddings": 16,
    "projection_dim": 22,
    "eos_token_id": 2,
    "bos_token_id": 1,
    "pad_token_id": 0,
}
CLIP_VISION = {
    "hidden_size": 42,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 50,
    "image_size": 32,
    "patch_size": 8,
    "projection_dim": 22,
}


def _image_and_text(is_small: bool) -> Inputs:
    size, words, length = (32, 53, 7) if is_small else (224, 1000, 16)
    return (), {"input_ids": torch.randint(5, words, (2, length)), "pixel_values": torch.randn(2, 3, size, size)}


def _video(is_small: bool) -> Inputs:
    return (), {"pixel_values": torch.randn(2, 4, 3, 32, 32) if is_small else torch.randn(2, 16, 3, 224, 224)}


# Left out: ViLT, which resizes its position table to extents read from a mask (data-dependent: torch.export refuses).
ENTRIES = (
    classifier("vit", "ViTForImageClassification", "ViTConfig"),
    classifier("deit", "DeiTForImageClassificationWithTeacher", "DeiTConfig"),
    classifier(
        "beit", "BeitForImageClassification", "BeitConfig", {"use_relative_position_bias": True}, {"use_relative_position_bias": True}
    ),
    classifier(
        "beit_shared_bias",
        "BeitForImageClassification",
        "BeitConfig",
        {"use_shared_relative_position_bias": True, "use_mean_pooling": False},
        {"use_shared_relative_position_bias": True},
    ),
    classifier(
        "data2vec_vision",
        "Data2VecVisionForImageClassification",
        "Data2VecVisionConfig",
        {"use_relative_position_bias": True},
        {"use_relative_position_bias": True},
    ),
    classifier("dinov2", "Dinov2ForImageClassification", "Dinov2Config", {"mlp_ratio": 2}, real_size=518, note="layer scale"),
    classifier(
        "dinov2_swiglu",
        "Dinov2ForImageClassification",
        "Dinov2Config",
        {"mlp_ratio": 2, "use_swiglu_ffn": True},
        {"use_swiglu_ffn": True},
        note="fused gate and up by chunk",
    ),
    classifier(
        "dinov2_registers",
        "Dinov2WithRegistersForImageClassification",
        "Dinov2WithRegistersConfig",
        {"mlp_ratio": 2, "num_register_tokens": 2},
    ),
    classifier(
        "dinov3", "DINOv3ViTModel", "DINOv3ViTConfig", {"hidden_size": 36, "num_register_tokens": 2}, note="rotary over patches only"
    ),
    classifier("ijepa", "IJepaForImageClassification", "IJepaConfig"),
    classifier("vit_msn", "ViTMSNForImageClassification", "ViTMSNConfig"),
    classifier(
        "yolos",
        "YolosForObjectDetection",
        "YolosConfig",
        {"image_size": [32, 32], "num_detection_tokens": 7},
        {"image_size": [512, 512]},
        real_size=512,
    ),
    classifier(
        "vitdet",
        "VitDetModel",
        "VitDetConfig",
        {"window_size": 3, "window_block_indices": [0], "use_relative_position_embeddings": True, "num_hidden_layers": 2, "mlp_ratio": 2},
        {"window_size": 14, "window_block_indices": [0], "use_relative_position_embeddings": True},
        note="windows with padding, decomposed relative positions",
    ),
    classifier("swin", "SwinForImageClassification", "SwinConfig", base=(SWIN, SWIN_TINY), note="shifted windows, patch merging"),
    classifier(
        "swinv2",
        "Swinv2ForImageClassification",
        "Swinv2Config",
        base=(SWIN, SWIN_TINY),
        real={"window_size": 7},
        note="cosine attention, bias table from an MLP",
    ),
    classifier(
        "swin2sr",
        "Swin2SRForImageSuperResolution",
        "Swin2SRConfig",
        base=(
            {
                "image_size": 16,
                "patch_size": 1,
                "num_channels": 3,
                "embed_dim": 18,
                "depths": [2, 1],
                "num_heads": [3, 3],
                "window_size": 4,
                "upscale": 2,
                "upsampler": "pixelshuffle",
            },
            {"image_size": 64, "depths": [2, 2], "num_heads": [6, 6]},
        ),
        size=16,
        real_size=64,
        note="pixel shuffle upsampler",
    ),
    classifier(
        "segformer",
        "SegformerForSemanticSegmentation",
        "SegformerConfig",
        base=(
            {
                "num_encoder_blocks": 3,
                "depths": [1, 1, 1],
                "sr_ratios": [4, 2, 1],
                "hidden_sizes": [12, 20, 36],
                "patch_sizes": [7, 3, 3],
                "strides": [4, 2, 2],
                "num_attention_heads": [1, 2, 3],
                "mlp_ratios": [2, 3, 2],
                "decoder_hidden_size": 26,
                "num_labels": 5,
            },
            {"depths": [1, 1, 1, 1]},
        ),
        note="sequence reduction by strided conv, depthwise conv in the FFN, cat of all stages",
    ),
    classifier(
        "pvt",
        "PvtForImageClassification",
        "PvtConfig",
        base=(
            {
                "image_size": 32,
                "depths": [1, 1, 1, 1],
                "sequence_reduction_ratios": [4, 2, 1, 1],
                "hidden_sizes": [12, 20, 36, 40],
                "num_attention_heads": [1, 2, 3, 5],
                "mlp_ratios": [2, 3, 2, 2],
                "num_labels": 5,
            },
            {"depths": [1, 1, 1, 1]},
        ),
    ),
    classifier(
        "pvt_v2",
        "PvtV2ForImageClassification",
        "PvtV2Config",
        base=(
            {
                "image_size": 32,
                "depths": [1, 1, 1, 1],
                "sr_ratios": [4, 2, 1, 1],
                "hidden_sizes": [12, 20, 36, 40],
                "num_attention_heads": [1, 2, 3, 5],
                "mlp_ratios": [2, 3, 2, 2],
                "num_labels": 5,
            },
            {"depths": [1, 1, 1, 1]},
        ),
    ),
    classifier(
        "cvt",
        "CvtForImageClassification",
        "CvtConfig",
        base=(
            {"embed_dim": [12, 18, 30], "num_heads": [1, 3, 3], "depth": [1, 2, 3], "mlp_ratio": [2.0, 2.0, 2.0], "num_labels": 5},
            {"depth": [1, 2, 3]},
        ),
        note="depthwise conv as projection",
    ),
    classifier(
        "mobilevit",
        "MobileViTForImageClassification",
        "MobileViTConfig",
        base=(
            {
                "image_size": 64,
                "hidden_sizes": [36, 42, 48],
                "neck_hidden_sizes": [8, 12, 16, 20, 24, 28, 60],
                "num_attention_heads": 3,
                "mlp_ratio": 2.0,
                "num_labels": 5,
            },
            {},
        ),
        size=64,
        real_size=256,
        note="unfolds pixels of patches",
    ),
    classifier(
        "mobilevitv2",
        "MobileViTV2ForImageClassification",
        "MobileViTV2Config",
        base=({"image_size": 64, "width_multiplier": 0.25, "n_attn_blocks": [1, 1, 1], "num_labels": 5}, {"n_attn_blocks": [1, 1, 1]}),
        size=64,
        real_size=256,
        note="linear attention with one query channel",
    ),
    classifier(
        "swiftformer",
        "SwiftFormerForImageClassification",
        "SwiftFormerConfig",
        base=({"depths": [1, 1, 1, 1], "embed_dims": [12, 18, 22, 30], "num_labels": 5}, {"depths": [1, 1, 1, 1]}),
        size=64,
        note="additive attention",
    ),
    classifier(
        "focalnet",
        "FocalNetForImageClassification",
        "FocalNetConfig",
        base=(
            {
                "image_size": 32,
                "embed_dim": 12,
                "depths": [1, 1],
                "hidden_sizes": [12, 24],
                "focal_levels": [2, 2],
                "focal_windows": [3, 3],
                "num_labels": 5,
            },
            {"depths": [1, 1, 1, 1]},
        ),
        note="focal modulation: one projection split into query, context and gates",
    ),
    classifier(
        "hiera",
        "HieraForImageClassification",
        "HieraConfig",
        base=(
            {"image_size": [64, 64], "embed_dim": 12, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 4, 8], "num_labels": 5},
            {"depths": [1, 1, 1, 1]},
        ),
        size=64,
        note="pooled queries, mask units",
    ),
    classifier(
        "dpt",
        "DPTForDepthEstimation",
        "DPTConfig",
        {
            "backbone_out_indices": [0, 1, 2, 3],
            "neck_hidden_sizes": [10, 14, 18, 22],
            "fusion_hidden_size": 16,
            "reassemble_factors": [4, 2, 1, 0.5],
            "readout_type": "project",
            "num_hidden_layers": 4,
        },
        {"num_hidden_layers": 4, "backbone_out_indices": [0, 1, 2, 3], "image_size": 384},
        real_size=384,
    ),
    classifier(
        "depth_anything",
        "DepthAnythingForDepthEstimation",
        "DepthAnythingConfig",
        base=(
            {
                "backbone_config": nested(
                    "Dinov2Config",
                    {
                        "hidden_size": 30,
                        "num_hidden_layers": 4,
                        "num_attention_heads": 3,
                        "mlp_ratio": 2,
                        "image_size": 32,
                        "patch_size": 8,
                        "out_features": ["stage1", "stage2", "stage3", "stage4"],
                        "reshape_hidden_states": False,
                    },
                    {
                        "num_hidden_layers": 4,
                        "hidden_size": 384,
                        "num_attention_heads": 6,
                        "image_size": 518,
                        "patch_size": 14,
                        "out_features": ["stage1", "stage2", "stage3", "stage4"],
                        "reshape_hidden_states": False,
                    },
                ),
                "patch_size": 8,
                "reassemble_hidden_size": 30,
                "neck_hidden_sizes": [10, 14, 18, 22],
                "fusion_hidden_size": 16,
                "head_hidden_size": 6,
                "head_in_index": -1,
            },
            {
                "backbone_config": nested(
                    "Dinov2Config",
                    {},
                    {
                        "num_hidden_layers": 4,
                        "hidden_size": 384,
                        "num_attention_heads": 6,
                        "image_size": 518,
                        "patch_size": 14,
                        "out_features": ["stage1", "stage2", "stage3", "stage4"],
                        "reshape_hidden_states": False,
                    },
                )
            },
        ),
        real_size=518,
    ),
    classifier(
        "glpn",
        "GLPNForDepthEstimation",
        "GLPNConfig",
        base=(
            {
                "depths": [1, 1, 1, 1],
                "sr_ratios": [4, 2, 1, 1],
                "hidden_sizes": [12, 20, 36, 40],
                "num_attention_heads": [1, 2, 3, 5],
                "mlp_ratios": [2, 3, 2, 2],
                "decoder_hidden_size": 26,
            },
            {"depths": [1, 1, 1, 1]},
        ),
        size=64,
        note="selective feature fusion",
    ),
    classifier(
        "upernet",
        "UperNetForSemanticSegmentation",
        "UperNetConfig",
        base=(
            {
                "backbone_config": nested(
                    "ConvNextConfig",
                    {"hidden_sizes": [8, 12, 18, 22], "depths": [1, 1, 1, 1], "out_features": ["stage1", "stage2", "stage3", "stage4"]},
                    {},
                ),
                "hidden_size": 20,
                "auxiliary_in_channels": 18,
                "auxiliary_channels": 14,
                "num_labels": 5,
                "pool_scales": [1, 2],
            },
            {
                "backbone_config": nested(
                    "ConvNextConfig",
                    {},
                    {  # the library's default widths are a tuple, to which it adds a list
                        "hidden_sizes": [96, 192, 384, 768],
                        "depths": [1, 1, 1, 1],
                        "out_features": ["stage1", "stage2", "stage3", "stage4"],
                    },
                )
            },
        ),
        size=64,
        real_size=512,
        note="pyramid pooling",
    ),
    Entry(
        "vit_mae",
        "vision",
        "transformers:ViTMAEForPreTraining",
        hf(
            "ViTMAEForPreTraining",
            "ViTMAEConfig",
            {
                **VIT,
                "decoder_hidden_size": 24,
                "decoder_num_hidden_layers": 1,
                "decoder_num_attention_heads": 4,
                "decoder_intermediate_size": 38,
                "mask_ratio": 0.5,
            },
            {"num_hidden_layers": 2, "decoder_num_hidden_layers": 1},
        ),
        pixels(32, 224, noise=lambda s: torch.rand(2, 16 if s else 196)),
        batch_only("pixel_values", "noise"),
        "patches dropped and restored by argsort and gather",
    ),
    Entry(
        "videomae",
        "vision",
        "transformers:VideoMAEForVideoClassification",
        hf("VideoMAEForVideoClassification", "VideoMAEConfig", {**VIT, "num_frames": 4}, {"num_hidden_layers": 2}),
        _video,
        batch_only("pixel_values"),
        "3-D patches; q and v biases beside none for k",
    ),
    Entry(
        "timesformer",
        "vision",
        "transformers:TimesformerForVideoClassification",
        hf("TimesformerForVideoClassification", "TimesformerConfig", {**VIT, "num_frames": 4}, {"num_hidden_layers": 2, "num_frames": 16}),
        _video,
        batch_only("pixel_values"),
        "divided attention: time and space fold into the batch",
    ),
    Entry(
        "clip",
        "vision",
        "transformers:CLIPModel",
        hf(
            "CLIPModel",
            "CLIPConfig",
            {"text_config": CLIP_TEXT, "vision_config": CLIP_VISION, "projection_dim": 22},
            {"text_config": {"num_hidden_layers": 2, "vocab_size": 1000, "eos_token_id": 2}, "vision_config": {"num_hidden_layers": 2}},
        ),
        _image_and_text,
        batch_only("input_ids", "pixel_values"),
        "two towers meet in one product",
    ),
    Entry(
        "clip_vision",
        "vision",
        "transformers:CLIPVisionModelWithProjection",
        hf("CLIPVisionModelWithProjection", "CLIPVisionConfig", CLIP_VISION, {"num_hidden_layers": 2}),
        pixels(32, 224),
        batch_only("pixel_values"),
    ),
    Entry(
        "siglip",
        "vision",
        "transformers:SiglipModel",
        hf(
            "SiglipModel",
            "SiglipConfig",
            {"text_config": {**CLIP_TEXT, "projection_size": 42}, "vision_config": CLIP_VISION},
            {"text_config": {"num_hidden_layers": 2, "vocab_size": 1000}, "vision_config": {"num_hidden_layers": 2}},
        ),
        _image_and_text,
        batch_only("input_ids", "pixel_values"),
        "attention pooling by nn.MultiheadAttention",
    ),
    Entry(
        "blip_itm",
        "vision",
        "transformers:BlipForImageTextRetrieval",
        hf(
            "BlipForImageTextRetrieval",
            "BlipConfig",
            {
                "text_config": {**CLIP_TEXT, "hidden_size": 42, "encoder_hidden_size": 42, "projection_dim": 22},
                "vision_config": CLIP_VISION,
                "image_text_hidden_size": 22,
                "projection_dim": 22,
            },
            {"text_config": {"num_hidden_layers": 2, "vocab_size": 1000}, "vision_config": {"num_hidden_layers": 2, "image_size": 224}},
        ),
        _image_and_text,
        batch_only("input_ids", "pixel_values"),
        "cross attention from text to image",
    ),
)

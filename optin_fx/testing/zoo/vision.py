"""Vision transformers and detectors, from transformers, timm and torchvision."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

import torch
from torch import nn

from optin_fx.testing.zoo import entry
from optin_fx.testing.zoo.entry import Entry, Inputs, batch_only, hf, image, pixels

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
TIMM_VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 30, "depth": 2, "num_heads": 3, "num_classes": 5}
TIMM_BASE = {"depth": 2}
SWIN = {"image_size": 32, "patch_size": 2, "embed_dim": 18, "depths": [2, 2], "num_heads": [3, 6], "window_size": 4, "num_labels": 5}
SWIN_TINY = {"depths": [2, 2, 2, 2], "num_labels": 1000}
TIMM_SWIN = {"img_size": 32, "patch_size": 2, "embed_dim": 18, "depths": (2, 2), "num_heads": (3, 6), "window_size": 4, "num_classes": 5}


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


def timm(
    name: str,
    model: str,
    small: Mapping[str, Any] | None = None,
    real: Mapping[str, Any] | None = None,
    *,
    base: tuple[Mapping[str, Any], Mapping[str, Any]] = (TIMM_VIT, TIMM_BASE),
    size: int = 32,
    real_size: int = 224,
    note: str = "",
) -> Entry:
    return Entry(
        name,
        "vision",
        f"timm:{model}",
        entry.timm(model, {**base[0], **(small or {})}, {**base[1], **(real or {})}),
        image(size, real_size),
        None,
        note,
    )


def nested(name: str, small: Mapping[str, Any], real: Mapping[str, Any]) -> Callable[[bool], Any]:
    """A config inside a config."""

    def build(is_small: bool) -> Any:
        import transformers

        return getattr(transformers, name)(**(small if is_small else real))

    return build


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


def _sam_inputs(is_small: bool) -> Inputs:
    size = 64 if is_small else 1024
    return (), {"pixel_values": torch.randn(2, 3, size, size), "input_points": torch.rand(2, 1, 3, 2) * size}


def _video(is_small: bool) -> Inputs:
    return (), {"pixel_values": torch.randn(2, 4, 3, 32, 32) if is_small else torch.randn(2, 16, 3, 224, 224)}


def _timm_class(module: str, name: str) -> Any:
    """A class of timm whose model functions fix the options that the small size has to change."""
    return getattr(import_module(f"timm.models.{module}"), name)


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
    Entry(
        "gcvit",
        "vision",
        "timm:GlobalContextVit",
        lambda s: _timm_class("gcvit", "GlobalContextVit")(
            **(
                {"img_size": 64, "embed_dim": 12, "depths": (1, 1), "num_heads": (2, 3), "window_size": (4, 4), "num_classes": 5}
                if s
                else {"depths": (1, 1, 1, 1)}
            )
        ),
        image(64, 224),
        None,
        "global queries, squeeze-excite",
    ),
    Entry(
        "nest",
        "vision",
        "timm:Nest",
        lambda s: _timm_class("nest", "Nest")(
            **(
                {
                    "img_size": 32,
                    "patch_size": 4,
                    "num_levels": 2,
                    "embed_dims": (18, 30),
                    "num_heads": (3, 3),
                    "depths": (1, 1),
                    "num_classes": 5,
                }
                if s
                else {"depths": (1, 1, 2)}
            )
        ),
        image(32, 224),
        None,
        "blocks of the image as a batch",
    ),
    Entry(
        "volo",
        "vision",
        "timm:VOLO",
        lambda s: _timm_class("volo", "VOLO")(
            **(
                {
                    "img_size": 32,
                    "layers": (1, 1),
                    "embed_dims": (18, 30),
                    "num_heads": (3, 3),
                    "mlp_ratio": (2, 2),
                    "downsamples": (True, False),
                    "outlook_attention": (True, False),
                    "stem_hidden_dim": 8,
                    "num_classes": 5,
                    "post_layers": ("ca", "ca"),
                }
                if s
                else {
                    "layers": (2, 2),
                    "embed_dims": (192, 384),
                    "num_heads": (6, 12),
                    "downsamples": (True, False),
                    "outlook_attention": (True, False),
                    "post_layers": ("ca", "ca"),
                }
            )
        ),
        image(32, 224),
        None,
        "outlook attention: unfold, fold",
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


def _mvit(is_small: bool) -> nn.Module:
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

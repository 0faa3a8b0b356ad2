"""Convolutional networks, from timm, torchvision and transformers."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module
from typing import Any

import torch

from optin_fx.testing.zoo import entry
from optin_fx.testing.zoo.entry import Entry, batch_only, hf, image, pixels

RESNET = {"layers": (1, 1, 2, 1), "channels": (10, 14, 22, 26), "stem_width": 10, "num_classes": 5}


timm = partial(entry.timm_model, "cnn")


def vision(
    name: str,
    model: str,
    small: Mapping[str, Any] | None = None,
    real: Mapping[str, Any] | None = None,
    *,
    size: int = 64,
    real_size: int = 224,
    note: str = "",
) -> Entry:
    return Entry(
        name,
        "cnn",
        f"torchvision:{model}",
        entry.vision(model, {"num_classes": 5, **(small or {})}, real),
        image(size, real_size),
        None,
        note,
    )


def _video(is_small: bool) -> entry.Inputs:
    return (torch.randn(2, 3, 4, 32, 32) if is_small else torch.randn(2, 3, 16, 112, 112),), {}


def _resnet(is_small: bool, **more: Any) -> torch.nn.Module:
    from torchvision.models.resnet import BasicBlock, ResNet

    return ResNet(BasicBlock, [1, 1, 1, 1] if is_small else [2, 2, 2, 2], num_classes=5 if is_small else 1000, **more)


def _dpn(is_small: bool) -> torch.nn.Module:
    model = import_module("timm.models.dpn").DPN
    if is_small:
        return model(k_sec=(1, 1, 2, 1), inc_sec=(4, 6, 6, 8), k_r=12, groups=3, num_init_features=10, num_classes=5, b=False)
    return entry.timm("dpn68", {})(False)


# Overrides of timm's configurable families.
BYO = {"width_factor": 0.25}
CSP: Mapping[str, Any] = {}


def _efficientnet(*stages: str, experts: bool = False, **options: Any) -> Callable[[bool], torch.nn.Module]:
    """timm's EfficientNet class over block strings in its own notation (kind, repeats, kernel, stride, expansion, channels)."""

    def build(is_small: bool) -> torch.nn.Module:
        library = import_module("timm.models.efficientnet")
        width = 0.5 if is_small else 1.0
        args = library.decode_arch_def([[stage] for stage in stages], experts_multiplier=4 if experts else 1)
        return library.EfficientNet(
            block_args=args,
            num_classes=5 if is_small else 1000,
            stem_size=32,
            num_features=library.round_channels(1280, width / 4 if is_small else 1.0),
            round_chs_fn=partial(library.round_channels, multiplier=width),
            **options,
        )

    return build


def _mobileone() -> torch.nn.Module:
    library = import_module("timm.models.byobnet")
    widths = (16, 24, 40)  # timm rounds to multiples of eight
    blocks = [
        [library.ByoBlockCfg("one", 1, before, 2, 1), library.ByoBlockCfg("one", 1, after, 1, 0)]
        for before, after in itertools.pairwise(widths)
    ]
    return entry.timm("mobileone_s0", {"blocks": blocks, "stem_chs": 16, "num_classes": 5})(True)


def _vgg(is_small: bool) -> torch.nn.Module:
    library = import_module("torchvision.models.vgg")
    if not is_small:
        return library.vgg16_bn()
    model = library.VGG(library.make_layers([10, "M", 14, "M", 18, 22, "M"], batch_norm=True), num_classes=5, init_weights=False)
    model.classifier[0], model.classifier[3], model.classifier[6] = (
        torch.nn.Linear(22 * 49, 34),
        torch.nn.Linear(34, 30),
        torch.nn.Linear(30, 5),
    )
    return model


ENTRIES = (
    vision("resnet18", "resnet18"),
    timm("resnet26", "resnet26", RESNET),
    timm("resnet50", "resnet50", RESNET, note="bottlenecks"),
    timm("resnet50d", "resnet50d", {**RESNET, "stem_width": 5}, note="deep stem, average-pooled shortcut"),
    timm("resnext50", "resnext50_32x4d", {**RESNET, "cardinality": 3, "base_width": 64, "channels": (15, 18, 21, 24)}, note="grouped conv"),
    timm("wide_resnet50", "wide_resnet50_2", RESNET),
    timm("seresnet50", "seresnet50", {**RESNET, "channels": (8, 16, 24, 32)}, note="squeeze-excite"),
    timm("ecaresnet", "ecaresnet26t", {**RESNET, "stem_width": 8}, note="gate by a conv1d over the channels: pins them"),
    timm("resnet_blur", "resnetblur50", RESNET, note="anti-aliasing by a fixed depthwise filter"),
    timm(
        "resnet50_gn", "resnet50_gn", {**RESNET, "channels": (32, 32, 64, 64), "stem_width": 32, "layers": (1, 1, 1, 1)}, note="GroupNorm"
    ),
    timm("resnetv2", "resnetv2_50", {"layers": (1, 1, 1), "channels": (24, 40, 56), "stem_chs": 10}, note="pre-activation"),
    Entry(
        "bit",
        "cnn",
        "timm:ResNetV2",
        lambda s: import_module("timm.models.resnetv2").ResNetV2(
            **({"layers": (1, 1), "channels": (128, 256), "stem_chs": 32, "num_classes": 5} if s else {"layers": (1, 1, 1, 1)})
        ),
        image(32, 224),
        None,
        "GroupNorm and weight-standardised conv",
    ),
    timm(
        "res2net",
        "res2net50_26w_4s",
        {**RESNET, "base_width": 6, "channels": (64, 64, 64, 64), "layers": (1, 1, 1, 1)},
        {"layers": (1, 1, 1, 1)},
        note="hierarchical splits inside a block",
    ),
    timm(
        "resnest",
        "resnest26d",
        {**RESNET, "stem_width": 6, "channels": (8, 16, 16, 24), "layers": (1, 1, 1, 1)},
        note="split attention over radix groups",
    ),
    timm("sknet", "skresnet18", {**RESNET, "channels": (16, 16, 24, 24)}, note="softmax over branches"),
    timm("selecsls", "selecsls42b", {}, size=64, note="cat of branches kept for later blocks"),
    timm("dla", "dla34", {}, size=64, note="hierarchical aggregation"),
    timm("cspresnet", "cspresnet50", CSP, size=64, note="half of the channels bypass the stage"),
    timm("cspdarknet", "cspdarknet53", CSP, size=64),
    timm(
        "vovnet",
        "ese_vovnet19b_dw",
        {"stem_chs": [10, 10, 12], "stage_conv_chs": [14, 18, 22, 26], "stage_out_chs": [24, 32, 40, 48]},
        size=64,
        note="one-shot aggregation: cat of every layer",
    ),
    timm("gernet", "gernet_s", BYO, size=64),
    timm("regnetx", "regnetx_002", {}, note="grouped conv"),
    timm("regnety", "regnety_002", {}, note="grouped conv and squeeze-excite"),
    timm("regnetz", "regnetz_005", {}, note="inverted bottlenecks with grouped conv"),
    vision("regnet_torchvision", "regnet_y_400mf"),
    timm(
        "nfnet",
        "nfnet_l0",
        {"channels": (16, 24, 32, 32), "depths": (1, 1, 1, 1), "stem_chs": 16, "group_size": 8},
        size=64,
        note="weight-standardised conv: weights are computed; scaled activations",
    ),
    timm("nf_resnet", "nf_resnet26", {"channels": (16, 24, 32, 40), "depths": (1, 1, 1, 1), "stem_chs": 14}, size=64),
    timm("dm_nfnet", "dm_nfnet_f0", {"channels": (16, 24, 32, 32), "depths": (1, 1, 1, 1), "stem_chs": 16, "group_size": 8}, size=64),
    timm("repvgg", "repvgg_a0", BYO, note="three branches per block"),
    Entry(
        "mobileone",
        "cnn",
        "timm:mobileone_s0",
        lambda s: _mobileone() if s else entry.timm("mobileone_s0", {})(False),
        image(32, 224),
        None,
        "over-parametrised branches",
    ),
    timm(
        "densenet121",
        "densenet121",
        {"growth_rate": 6, "block_config": (2, 3, 2), "bn_size": 2},
        {"block_config": (3, 4, 4, 3)},
        note="every layer reads all before it",
    ),
    vision("densenet_torchvision", "densenet121", size=32),
    Entry("vgg16_bn", "cnn", "torchvision:vgg16_bn", _vgg, image(32, 224), None, "flatten of 7x7 positions into the classifier"),
    vision("squeezenet", "squeezenet1_1", note="the last conv is the classifier"),
    vision("inception_v3", "inception_v3", {"init_weights": False, "aux_logits": True}, size=96, real_size=299, note="branches of cat"),
    vision("googlenet", "googlenet", {"init_weights": False, "aux_logits": True}),
    timm("inception_v4", "inception_v4", {}, size=96, real_size=299),
    timm("xception", "xception41", {}, size=64, real_size=299, note="separable conv"),
    vision("mobilenet_v2", "mobilenet_v2", note="inverted residuals, linear bottlenecks"),
    vision("mobilenet_v3", "mobilenet_v3_small"),
    timm("mobilenetv3_timm", "mobilenetv3_small_100", {}),
    timm("mobilenetv4", "mobilenetv4_conv_small", {}),
    timm("mobilenetv4_hybrid", "mobilenetv4_hybrid_medium", {}, size=64, note="multi-query attention on feature maps"),
    Entry(
        "efficientnet_b0",
        "cnn",
        "timm:EfficientNet",
        _efficientnet(
            "ds_r1_k3_s1_e1_c16_se0.25",
            "ir_r2_k3_s2_e6_c24_se0.25",
            "ir_r1_k5_s2_e6_c40_se0.25",
            "ir_r2_k3_s2_e6_c80_se0.25",
            act_layer=torch.nn.SiLU,
        ),
        image(32, 224),
        None,
        "squeeze-excite",
    ),
    Entry(
        "efficientnet_lite0",
        "cnn",
        "timm:EfficientNet",
        _efficientnet(
            "ds_r1_k3_s1_e1_c16", "ir_r2_k3_s2_e6_c24", "ir_r2_k5_s2_e6_c40", "ir_r1_k3_s2_e6_c80", act_layer=torch.nn.ReLU6, fix_stem=True
        ),
        image(32, 224),
        None,
        "no squeeze-excite, relu6",
    ),
    Entry(
        "efficientnet_v2",
        "cnn",
        "timm:EfficientNet",
        _efficientnet("cn_r1_k3_s1_e1_c24_skip", "er_r2_k3_s2_e4_c48", "ir_r2_k3_s2_e4_c96_se0.25", act_layer=torch.nn.SiLU),
        image(32, 224),
        None,
        "fused inverted residuals",
    ),
    Entry(
        "efficientnet_condconv",
        "cnn",
        "timm:EfficientNet",
        _efficientnet("ds_r1_k3_s1_e1_c16_se0.25", "ir_r1_k3_s2_e6_c24_se0.25", "ir_r2_k3_s2_e6_c40_se0.25_cc4", experts=True),
        image(32, 224),
        None,
        "weights mixed from experts per sample, conv over a folded batch",
    ),
    timm("mixnet", "mixnet_s", {}, note="one split of the channels per kernel size"),
    timm("fbnet", "fbnetc_100", {}),
    timm("mnasnet", "mnasnet_small", {}),
    timm("tinynet", "tinynet_e", {}),
    timm("rexnet", "rexnet_100", {"width_mult": 0.5}, note="adds to the first channels only: partial slices"),
    timm("ghostnet", "ghostnet_050", {}, note="half of the features by cheap depthwise conv; cat and slice"),
    timm("ghostnetv2", "ghostnetv2_100", {}, size=64),
    vision("shufflenet_v2", "shufflenet_v2_x0_5", note="channel shuffle: chunk, cat, view, transpose"),
    vision("mnasnet_torchvision", "mnasnet0_5"),
    timm("lcnet", "lcnet_050", {}),
    timm("hrnet", "hrnet_w18_small", {}, note="exchanges between resolutions"),
    timm("convnext", "convnext_atto", {"depths": (1, 1, 2, 1), "dims": (10, 14, 22, 26)}, note="NHWC norms, layer scale"),
    timm("convnext_v2", "convnextv2_atto", {"depths": (1, 1, 2, 1), "dims": (10, 14, 22, 26)}, note="GRN normalises over the channels"),
    vision("convnext_torchvision", "convnext_tiny", real_size=224),
    timm(
        "inception_next",
        "inception_next_atto",
        {"depths": (1, 1, 1, 1), "dims": (16, 24, 32, 40)},
        note="split of the channels over band kernels",
    ),
    Entry(
        "convmixer",
        "cnn",
        "timm:ConvMixer",
        lambda s: import_module("timm.models.convmixer").ConvMixer(
            **(
                {"dim": 22, "depth": 2, "kernel_size": 3, "patch_size": 4, "num_classes": 5}
                if s
                else {"dim": 768, "depth": 3, "kernel_size": 7}
            )
        ),
        image(32, 224),
    ),
    timm("hgnet", "hgnetv2_b0", {}),
    timm(
        "edgenext",
        "edgenext_xx_small",
        {"depths": (1, 1, 1, 1), "dims": (12, 20, 24, 32), "heads": (4, 4, 4, 4)},
        size=64,
        note="cascaded split convs, cross-covariance attention",
    ),
    timm("starnet", "starnet_s050", {"depths": (1, 1, 1, 1)}, note="product of two branches"),
    timm("repvit", "repvit_m0_9", {"embed_dim": (12, 18, 24, 30), "depth": (1, 1, 1, 1)}),
    timm("tresnet", "tresnet_m", {"layers": (1, 1, 1, 1)}, {}, size=64, note="space to depth"),
    timm("halonet", "halonet26t", BYO, size=256, real_size=256, note="blocked local attention by unfold"),
    timm(
        "botnet", "botnet26t_256", {**BYO, "img_size": 64}, {}, size=64, real_size=256, note="attention with relative positions in a ResNet"
    ),
    timm(
        "lambda_resnet",
        "lambda_resnet26t",
        {**BYO, "img_size": 64},
        {},
        size=64,
        real_size=256,
        note="lambda layers: softmax over positions, 3-D conv",
    ),
    timm("gcresnet", "gcresnet33ts", BYO, size=64, note="global context: softmax over positions"),
    vision("deeplabv3", "deeplabv3_mobilenet_v3_large", note="dilated conv, image pooling branch"),
    vision("lraspp", "lraspp_mobilenet_v3_large"),
    Entry("fcn", "cnn", "torchvision:fcn_resnet50", entry.vision("fcn_resnet50", {"num_classes": 5}, {}), image(32, 224)),
    Entry(
        "resnet_group_norm",
        "cnn",
        "torchvision:ResNet",
        lambda s: _resnet(s, norm_layer=lambda c: torch.nn.GroupNorm(8, c)),
        image(32, 224),
        None,
        "GroupNorm: groups of 8 to 64 channels",
    ),
    Entry(
        "resnet_instance_norm",
        "cnn",
        "torchvision:ResNet",
        lambda s: _resnet(s, norm_layer=lambda c: torch.nn.InstanceNorm2d(c, affine=True)),
        image(64, 224),
        None,
        "InstanceNorm: each channel on its own",
    ),
    Entry("dpn", "cnn", "timm:dpn68", _dpn, image(32, 224), None, "dual path: a residual part and a growing cat, by slices"),
    Entry(
        "retinanet_backbone",
        "cnn",
        "torchvision:resnet_fpn",
        lambda s: __import__("torchvision").models.detection.backbone_utils.resnet_fpn_backbone(
            backbone_name="resnet18", weights=None, norm_layer=torch.nn.BatchNorm2d
        ),
        image(64, 512),
        None,
        "feature pyramid, outputs in a dict",
    ),
    Entry("r3d_18", "cnn", "torchvision:r3d_18", entry.vision("r3d_18", {"num_classes": 5}, {}), _video, None, "3-D conv"),
    Entry(
        "r2plus1d", "cnn", "torchvision:r2plus1d_18", entry.vision("r2plus1d_18", {"num_classes": 5}, {}), _video, None, "factored 3-D conv"
    ),
    Entry(
        "mobilenet_v1_hf",
        "cnn",
        "transformers:MobileNetV1ForImageClassification",
        hf("MobileNetV1ForImageClassification", "MobileNetV1Config", {"depth_multiplier": 0.25, "num_labels": 5}, {}),
        pixels(64, 224),
        batch_only("pixel_values"),
    ),
    Entry(
        "resnet_hf",
        "cnn",
        "transformers:ResNetForImageClassification",
        hf(
            "ResNetForImageClassification",
            "ResNetConfig",
            {"embedding_size": 10, "hidden_sizes": [12, 20, 28, 36], "depths": [1, 1, 1, 1], "num_labels": 5},
            {},
        ),
        pixels(32, 224),
        batch_only("pixel_values"),
    ),
    Entry(
        "convnextv2_hf",
        "cnn",
        "transformers:ConvNextV2ForImageClassification",
        hf(
            "ConvNextV2ForImageClassification",
            "ConvNextV2Config",
            {"hidden_sizes": [8, 12, 18, 22], "depths": [1, 1, 1, 1], "num_labels": 5},
            {"depths": [1, 1, 1, 1]},
        ),
        pixels(32, 224),
        batch_only("pixel_values"),
    ),
    Entry(
        "textnet",
        "cnn",
        "transformers:TextNetForImageClassification",
        hf("TextNetForImageClassification", "TextNetConfig", {"num_labels": 5}, {}),
        pixels(64, 224),
        batch_only("pixel_values"),
        "asymmetric kernels, three branches",
    ),
)

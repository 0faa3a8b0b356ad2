"""TensorRT-RTX engines of the model families that people prune, dense and pruned, built for real."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import optin_fx as ofx
from optin_fx.lowering import Engine, lower
from optin_fx.testing.zoo.entry import randomise

pytest.importorskip("tensorrt_rtx")
Made = tuple[nn.Module, tuple[Any, ...], dict[str, Any]]


def bert() -> Made:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(hidden_size=128, num_hidden_layers=2, num_attention_heads=8, intermediate_size=512, vocab_size=99)
    ids = torch.randint(0, 99, (2, 16))
    return transformers.BertModel(config), (), {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def timm(name: str, side: int, **options: Any) -> Made:
    return pytest.importorskip("timm").create_model(name, **options), (torch.randn(2, 3, side, side),), {}


def mask2former_backbone() -> Made:
    """The part of Mask2Former that reads the image: Swin, with the four feature maps as outputs."""
    transformers = pytest.importorskip("transformers")
    swin = transformers.SwinConfig(
        image_size=32, embed_dim=32, depths=[1, 1, 1, 1], num_heads=[2, 4, 8, 8], window_size=2,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )  # fmt: skip
    model = transformers.Mask2FormerModel(transformers.Mask2FormerConfig(backbone_config=swin))
    return model.pixel_level_module.encoder, (torch.randn(2, 3, 32, 32),), {}


FAMILIES: dict[str, Callable[[], Made]] = {
    "bert": bert,
    "deit": lambda: timm("deit_tiny_patch16_224", 64, img_size=64, depth=2),
    "swin": lambda: timm("swin_tiny_patch4_window7_224", 56, img_size=56, depths=(1, 1), num_heads=(2, 4), embed_dim=32),
    "resnet50": lambda: timm("resnet50", 32, base_width=16),
    "efficientnet": lambda: timm("efficientnet_b0", 32),
    "mask2former": mask2former_backbone,
}
# residual streams that no group holds (LayerNorm) and shared tables stay, so weights shrink less than FLOPs
PROFILE = {"batch": (1, 2, 8)}


def dense_and_pruned(family: str) -> tuple[ofx.Program, ofx.Program]:
    """The program, and the one with half of its FLOPs, in widths that TensorRT likes."""
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    model, args, kwargs = FAMILIES[family]()
    dense = ofx.trace(randomise(model.eval()), args, kwargs)
    plan = ofx.search(dense, ofx.score(dense, "magnitude"), budget="flops <= 50%", align=8)
    return dense, ofx.rewrite(dense, plan)


def engines(family: str, precision: str) -> tuple[Engine, Engine]:
    dense, small = (
        lower(program, f"tensorrt-rtx:{precision}", profile=PROFILE, check_onnx=precision == "fp32") for program in dense_and_pruned(family)
    )
    return dense, small


@pytest.mark.slow
@pytest.mark.parametrize(("family", "precision"), [*((family, "fp32") for family in FAMILIES), ("bert", "fp16"), ("resnet50", "bf16")])
def test_the_pruned_engine_has_no_more_layers_and_fewer_bytes(family: str, precision: str) -> None:
    dense, small = engines(family, precision)
    before, after = dense.info(), small.info()
    assert after["profile"] == {"batch": [1, 2, 8]}
    assert sum(after["network_layers"].values()) == after["layers"]
    assert {kind: count for kind, count in after["network_layers"].items() if count > before["network_layers"].get(kind, 0)} == {}
    layers = small.layers()
    assert sum(layers.values()) > 0
    assert layers.keys() & {"MATRIX_MULTIPLY", "CONVOLUTION"} or small.cannot_run is None
    saved = before["weight_bytes"] - after["weight_bytes"]
    assert saved > 0
    # kernels are a constant that depends on the number of distinct shapes; weights are stored one to one
    assert before["bytes"] - after["bytes"] > 0.5 * saved
    assert after["bytes"] > after["weight_bytes"]
    if precision == "fp32" and small.cannot_run:
        assert after["onnx_closeness"]["max_rel"] < 1e-3


@pytest.mark.gpu
@pytest.mark.parametrize("family", FAMILIES)
def test_engines_of_the_families_run_on_a_gpu(family: str) -> None:
    for engine in engines(family, "fp16"):
        if engine.cannot_run:
            pytest.skip(engine.cannot_run)
        assert engine.closeness is not None
        assert engine.closeness.within(5e-2)
        assert sum(engine.layers().values()) > 0

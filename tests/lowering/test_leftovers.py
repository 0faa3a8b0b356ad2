"""An ONNX model of a smaller program holds nothing of the dense one: no gathers of dense weights, no masks, no chains of identities."""

from __future__ import annotations

import logging
import warnings

import pytest

import optin_fx as ofx
from optin_fx.lowering import lower
from optin_fx.testing import zoo

pytest.importorskip("onnx")
NAMES = (
    "bert", "distilbert", "flaubert", "gpt2", "llama", "t5", "vit", "swin_timm", "deit_timm", "segformer", "resnet50",
    "efficientnet_b0", "mobilenet_v3", "vgg16_bn", "densenet121",
)  # fmt: skip
# integers of shapes and axes that one model folds and the other shares
SMALL_CONSTANTS = 512


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_left_of_the_dense_model(name: str) -> None:
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    dense = zoo.get(name).program()
    small = ofx.rewrite(dense, ofx.random_plan(dense, keep=0.5, seed=1))
    before, after = (lower(program, "onnx").info() for program in (dense, small))
    more = {op: (before["ops"].get(op, 0), count) for op, count in after["ops"].items() if count > before["ops"].get(op, 0)}
    assert not more, "op: nodes in the dense model, nodes in the smaller one"
    assert "Identity" not in after["ops"]
    # weights are those of the smaller program, and whatever else the dense model needs, too
    besides = before["weight_bytes"] - ofx.cost(dense).bytes
    assert after["weight_bytes"] <= ofx.cost(small).bytes + max(besides, 0) + SMALL_CONSTANTS
    assert after["weight_bytes"] < before["weight_bytes"]

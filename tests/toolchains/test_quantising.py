"""Quantisation after pruning: PT2E programs in ONNX Runtime and in OpenVINO."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
from torch import nn

import optin_fx as ofx
from optin_fx.errors import DataError, MissingExtra
from optin_fx.lowering import lower
from optin_fx.lowering.closeness import closeness
from optin_fx.toolchains import quantise


@pytest.fixture(scope="module")
def small() -> ofx.Program:
    """A pruned encoder; its batch is dynamic."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, activation="gelu")
    dense = ofx.trace(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), (torch.randn(2, 9, 32),))
    return ofx.rewrite(dense, ofx.search(dense, ofx.score(dense, "magnitude"), budget="flops <= 60%"))


@pytest.mark.parametrize("target", ["onnxruntime:cpu", "openvino:cpu"])
def test_products_are_integer_and_outputs_are_close(small: ofx.Program, target: str) -> None:
    pytest.importorskip("torchao")
    pytest.importorskip(target.partition(":")[0])
    before = {name: tensor.clone() for name, tensor in small.tensors.items()}
    quantised = quantise(small, [torch.randn(8, 9, 32) for _ in range(4)])
    assert all(torch.equal(before[name], tensor) for name, tensor in small.tensors.items())
    ops = lower(quantised, "onnx", tolerance=0.1).info()["ops"]
    assert ops["QuantizeLinear"] > 0
    assert ops["DequantizeLinear"] >= ops["QuantizeLinear"]
    engine = lower(quantised, target, tolerance=0.1)
    x = torch.randn(5, 9, 32)
    assert closeness([engine(x)], [quantised(x)]).max_rel < 0.05
    gap = closeness([engine(x)], [small(x)]).max_rel
    assert 1e-4 < gap < 0.15


def test_without_data_it_is_refused(small: ofx.Program) -> None:
    pytest.importorskip("torchao")
    with pytest.raises(DataError):
        quantise(small, [])


def test_a_missing_extra_says_what_to_install(small: ofx.Program, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.import_module

    def without(name: str, *args: Any) -> Any:
        if name.startswith("torchao"):
            raise ImportError(name)
        return real(name, *args)

    monkeypatch.setattr(importlib, "import_module", without)
    with pytest.raises(MissingExtra) as error:
        quantise(small, [torch.randn(8, 9, 32)])
    assert str(error.value) == "quantise needs the package 'torchao', which is not installed\n  fix pip install 'optin-fx[quantise]'"

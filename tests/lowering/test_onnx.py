"""ONNX models: names, sizes, external data, checks, and the traps of the exporter."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import optin_fx as ofx
from optin_fx.errors import LoweringError
from optin_fx.lowering import Signature, load_engine, lower, precision
from optin_fx.lowering.onnx_model import to_onnx

onnx = pytest.importorskip("onnx")


def shapes(values: Any) -> dict[str, list[Any]]:
    return {value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in values}


def test_names_and_dynamic_dims(structured: ofx.Program, tmp_path: Path) -> None:
    model = onnx.load(lower(structured, "onnx").save(tmp_path / "model.onnx"))
    assert shapes(model.graph.input) == {"batch_x": ["batch", 4, 8], "scale": ["batch"]}
    assert shapes(model.graph.output) == {
        "hidden": ["batch", 4, 8], "pair_0": ["batch", 8], "pair_1": ["batch", 4, 8], "best": ["batch"],
    }  # fmt: skip
    assert model.opset_import[0].version == 20
    text = str(model.graph.value_info)
    assert not re.search(r'"s\d+"', text)


def test_unknown_sizes_stay_unknown() -> None:
    """Two sizes of one name would share a buffer in ONNX Runtime; layers with different head counts have such sizes."""

    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.ModuleList([nn.Linear(32, 48 * heads), nn.Linear(16 * heads, 32)]) for heads in (1, 2, 3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for qkv, out in self.layers:
                query, key, value = qkv(x).unflatten(-1, (3, -1, 16)).permute(2, 0, 3, 1, 4)
                x = x + out(nn.functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))
            return x

    engine = lower(ofx.trace(Heads(), (torch.randn(2, 9, 32),)), "onnx")
    for rows in (1, 2, 5):
        assert engine(torch.randn(rows, 9, 32)).shape == (rows, 9, 32)
    names = {dim.value for node in engine.model.graph for value in node.outputs for dim in value.shape or () if not isinstance(dim, int)}
    assert "None" not in names


def test_external_data(structured: ofx.Program, call: Any, tmp_path: Path) -> None:
    engine = lower(structured, "onnx", external_above=100)
    path = engine.save(tmp_path / "model.onnx")
    data = tmp_path / "model.onnx.data"
    assert data.stat().st_size >= 0.8 * engine.info()["weight_bytes"]  # the smallest tensors stay inside
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for file in (path, data, tmp_path / "model.onnx.json"):
        file.rename(moved / file.name)
    args, kwargs = call(4)
    loaded = load_engine(moved / "model.onnx")
    torch.testing.assert_close(loaded(*args, **kwargs)["hidden"], structured(*args, **kwargs)["hidden"], rtol=1e-4, atol=1e-5)
    again = loaded.save(tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx.data").is_file()
    assert load_engine(again).signature == engine.signature


def test_half_the_model_has_no_more_nodes_and_half_the_bytes(dense: ofx.Program, half: ofx.Program) -> None:
    whole, smaller = lower(dense, "onnx").info(), lower(half, "onnx").info()
    assert smaller["ops"] == whole["ops"]
    assert smaller["weight_bytes"] < 0.55 * whole["weight_bytes"]
    assert not {"Identity", "Gather", "GatherND", "ScatterND"} & set(smaller["ops"])


def test_batch_norm_is_folded(cnn: ofx.Program) -> None:
    assert "BatchNormalization" not in lower(cnn, "onnx").info()["ops"]


def test_an_op_that_onnx_lacks_is_named() -> None:
    class Bessel(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.special.bessel_j0(x)

    program = ofx.trace(Bessel(), (torch.randn(2, 3),))
    with pytest.raises(LoweringError) as error:
        lower(program, "onnx")
    text = str(error.value)
    assert text.startswith("the ONNX exporter refuses the program: No ONNX function found for <OpOverload(op='prims.bessel_j0'")
    assert "\n  at  %bessel_j0 (torch.ops.prims.bessel_j0.default), " in text
    assert "test_onnx.py:" in text
    assert text.endswith(
        "\n  so  there is no ONNX model\n  fix rewrite that line of the model with other ops, or lower to eager, inductor or aotinductor"
    )


def test_bf16_below_opset_22_is_refused(cnn: ofx.Program) -> None:
    with pytest.raises(LoweringError) as error:
        lower(cnn, "onnx:bf16", opset=20)
    assert str(error.value) == (
        "bf16 needs opset 22, not 20\n  so  Conv takes no bfloat16 before that\n  fix leave opset out, or pass 22"
    )  # fmt: skip


def test_bf16_is_valid_and_says_that_it_was_not_run(cnn: ofx.Program, tmp_path: Path) -> None:
    engine = lower(cnn, "onnx:bf16")
    assert engine.info()["opset"] == 22
    assert engine.cannot_run == "bf16: the CPU kernels of ONNX Runtime do not take bfloat16"
    path = engine.save(tmp_path / "model.onnx")
    stored = {tensor.data_type for tensor in onnx.load(path).graph.initializer if tensor.data_type in (1, 10, 16)}
    assert stored == {onnx.TensorProto.BFLOAT16}


def test_unfolded_batch_norm_in_bf16_is_caught(cnn: ofx.Program, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "fold_batch_norm", lambda module: 0)
    with pytest.raises(LoweringError, match="mixes BFLOAT16 and FLOAT") as error:
        to_onnx(cnn, Signature.of(cnn), precision="bf16")
    assert "(Conv)" in str(error.value)
    assert "fold BatchNorm into its convolution before lowering in bf16" in str(error.value)


def test_attention_stays_decomposed_at_the_default_opset(dense: ofx.Program) -> None:
    assert "Attention" not in lower(dense, "onnx").info()["ops"]
    assert lower(dense, "onnx", opset=23).info()["ops"]["Attention"] == 3


def test_attention_with_a_trained_bias_exports() -> None:
    """With gradients on, the exporter decomposes such attention twice, with two layouts, and fails."""

    class Biased(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv, self.bias = nn.Linear(32, 96), nn.Parameter(torch.randn(2, 8, 8))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            query, key, value = self.qkv(x).unflatten(-1, (3, 2, 16)).permute(2, 0, 3, 1, 4)
            mixed = nn.functional.scaled_dot_product_attention(query, key, value, self.bias.expand(x.shape[0], -1, -1, -1))
            return mixed.transpose(1, 2).reshape(x.shape[0], 8, -1)

    assert lower(ofx.trace(Biased(), (torch.randn(2, 8, 32),)), "onnx").closeness is not None

"""Engines by Torch-TensorRT. It cannot be imported without a GPU, so that a stand-in with its names records what it would be given."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import logging
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import optin_fx as ofx
from optin_fx.errors import LoweringError, MissingExtra
from optin_fx.lowering import load_engine, lower, torch_tensorrt
from optin_fx.lowering.tensorrt import module_of

pytest.importorskip("tensorrt_rtx")


class Input:
    """Stands for `torch_tensorrt.Input`."""

    def __init__(self, **facts: Any) -> None:
        self.facts = facts


class StandIn:
    """Stands for the package `torch_tensorrt`: keeps the call, and either returns a plan or raises."""

    __version__, Input = "2.14.0", Input
    ENABLED_FEATURES = types.SimpleNamespace(tensorrt_rtx=True)

    def __init__(self, error: Exception | None = None) -> None:
        self.dynamo, self.error = self, error

    def convert_exported_program_to_serialized_trt_engine(self, exported: Any, **options: Any) -> bytes:
        self.exported, self.options = exported, options
        if self.error is not None:
            raise self.error
        return b"plan"


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    package = StandIn()
    monkeypatch.setattr(torch_tensorrt, "imported", lambda: package)
    monkeypatch.setattr(torch_tensorrt, "gpu", lambda: "SM86")
    return package


def test_it_is_given_names_shapes_and_dtypes(stand_in: StandIn, structured: ofx.Program, tmp_path: Path) -> None:
    engine = lower(structured, "torch-tensorrt", check=False, profile={"batch": (1, 4, 8)})
    options = stand_in.options
    assert [entry.facts for entry in options["arg_inputs"]] == [
        {"min_shape": (1, 4, 8), "opt_shape": (4, 4, 8), "max_shape": (8, 4, 8), "dtype": torch.float32, "name": "batch_x"},
        {"min_shape": (1,), "opt_shape": (4,), "max_shape": (8,), "dtype": torch.float32, "name": "scale"},
    ]
    assert options["arg_input_binding_names"] == ("batch_x", "scale")
    assert list(options["output_binding_names"]) == ["hidden", "pair_0", "pair_1", "best"]
    assert (options["disable_tf32"], options["require_full_compilation"], options["attn_bias_is_causal"]) == (True, True, False)
    assert engine.info()["profile"] == {"batch": [1, 4, 8]}
    assert engine.info()["runtime"] == "tensorrt-rtx"
    loaded = load_engine(engine.save(tmp_path / "m.engine"))
    assert (loaded.plan, loaded.target, loaded.layers()) == (b"plan", "torch-tensorrt:cuda", {})


def test_what_it_converts_is_the_program_without_its_structure(stand_in: StandIn, structured: ofx.Program, call: Any) -> None:
    lower(structured, "torch-tensorrt:tf32", check=False)
    assert stand_in.options["disable_tf32"] is False
    args, kwargs = call(5)
    expected = structured(*args, **kwargs)
    flat = stand_in.exported.module()(args[0]["x"], kwargs["scale"])
    for found, wanted in zip(flat, (expected["hidden"], *expected["pair"], expected["best"]), strict=True):
        torch.testing.assert_close(found, wanted)


def test_half_precision_is_in_the_program(stand_in: StandIn, cnn: ofx.Program) -> None:
    lower(cnn, "torch-tensorrt:bf16", check=False)
    assert {tensor.dtype for tensor in stand_in.exported.state_dict.values()} == {torch.bfloat16}
    assert stand_in.options["arg_inputs"][0].facts["dtype"] == torch.float32


@pytest.mark.parametrize(("width", "decomposed"), [(16, False), (9, True)])
def test_attention_of_two_widths_is_taken_apart(stand_in: StandIn, width: int, decomposed: bool) -> None:
    class Attention(nn.Module):
        def forward(self, query: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
            return nn.functional.scaled_dot_product_attention(query, query, value)

    program = ofx.trace(Attention(), (torch.randn(2, 3, 5, 16), torch.randn(2, 3, 5, width)), dynamic_shapes={})
    lower(program, "torch-tensorrt", check=False)
    assert stand_in.options["decompose_attention"] is decomposed
    assert stand_in.options["arg_inputs"][1].facts == {"shape": (2, 3, 5, width), "dtype": torch.float32, "name": "value"}


def test_a_refusal_names_the_line(stand_in: StandIn, structured: ofx.Program) -> None:
    cause = RuntimeError("Conversion of function gelu not currently supported!\n\nWhile executing [target=torch.ops.aten.gelu.default]")
    stand_in.error = RuntimeError("Conversion of module GraphModule() and a long listing of it")
    stand_in.error.__cause__ = cause
    with pytest.raises(LoweringError) as error:
        lower(structured, "torch-tensorrt", profile={"batch": (1, 2, 4)})
    text = str(error.value)
    assert text.startswith("Torch-TensorRT refuses the program: Conversion of function gelu not currently supported!\n  at  ")
    assert "lowering/conftest.py:" in text
    assert text.endswith("or lower to tensorrt-rtx or tensorrt, which go through ONNX")


def test_where_the_reason_is_only_logged(stand_in: StandIn, structured: ofx.Program, monkeypatch: pytest.MonkeyPatch) -> None:
    def convert(*args: Any, **options: Any) -> bytes:
        logging.getLogger("torch_tensorrt [TensorRT Conversion Context]").error("the builder's own words")
        raise AssertionError

    monkeypatch.setattr(stand_in, "convert_exported_program_to_serialized_trt_engine", convert)
    with pytest.raises(LoweringError, match=r"^Torch-TensorRT refuses the program: the builder's own words\n"):
        lower(structured, "torch-tensorrt", profile={"batch": (1, 2, 4)})
    assert logging.getLogger("torch_tensorrt").propagate


def test_rtx_takes_no_timing_cache(stand_in: StandIn, structured: ofx.Program, tmp_path: Path) -> None:
    with pytest.raises(LoweringError, match=r"^TensorRT-RTX takes no timing cache"):
        lower(structured, "torch-tensorrt", timing_cache=tmp_path / "cache")


def test_not_installed(structured: ofx.Program, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra) as error:
        lower(structured, "torch-tensorrt")
    assert str(error.value) == (
        "the target torch-tensorrt needs the package 'torch_tensorrt', which is not installed\n  fix pip install 'optin-fx[torch-tensorrt]'"
    )


def test_installed_without_a_gpu(structured: ofx.Program, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(LoweringError) as error:
        lower(structured, "torch-tensorrt")
    assert str(error.value) == (
        "Torch-TensorRT cannot even be imported without a CUDA device, and there is none here\n  so  there is no engine\n"
        "  fix lower to tensorrt-rtx, whose builder needs no GPU"
    )


def test_rtx_under_the_name_of_full_tensorrt_is_not_taken_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Importing the Torch-TensorRT of TensorRT-RTX puts `tensorrt_rtx` under the name `tensorrt`."""
    proxy = types.SimpleNamespace(_package_name="tensorrt_rtx", __name__="tensorrt_rtx")
    monkeypatch.setattr(importlib, "import_module", lambda name: proxy)
    assert module_of("tensorrt-rtx") is proxy
    with pytest.raises(MissingExtra, match="needs the package 'tensorrt'"):
        module_of("tensorrt")


@pytest.mark.gpu
def test_on_a_gpu(dense: ofx.Program, tmp_path: Path) -> None:
    package = pytest.importorskip("torch_tensorrt")
    convert = package.dynamo.convert_exported_program_to_serialized_trt_engine
    assert {"arg_input_binding_names", "output_binding_names", "decompose_attention"} <= set(inspect.signature(convert).parameters)
    engine = lower(dense, "torch-tensorrt:fp16")
    assert engine.closeness is not None
    x = torch.randn(5, 32, 64)
    torch.testing.assert_close(load_engine(engine.save(tmp_path / "m.engine"))(x), dense(x), rtol=5e-2, atol=5e-2)
    assert engine.info()["profile"] == {"batch": [1, 2, 8]}

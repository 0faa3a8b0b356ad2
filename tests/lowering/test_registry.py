"""Targets by name, their options, and what is refused."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import optin_fx as ofx
from optin_fx.errors import LoweringError, MissingExtra
from optin_fx.lowering import Backend, Engine, Signature, Target, lower, parse_target, register, registry, targets

NAMES = ["aotinductor", "eager", "inductor", "onnx", "onnxruntime", "openvino", "tensorrt", "tensorrt-rtx", "torch-tensorrt"]


def test_all_targets_are_listed() -> None:
    assert sorted(targets()) == NAMES
    assert all(backend.what for backend in targets().values())


@pytest.mark.parametrize(
    ("text", "parsed", "canonical"),
    [
        ("onnxruntime", Target("onnxruntime", "fp32", "cpu"), "onnxruntime:cpu"),
        ("onnxruntime:cuda", Target("onnxruntime", "fp32", "cuda"), "onnxruntime:cuda"),
        ("tensorrt:fp16", Target("tensorrt", "fp16", "cuda"), "tensorrt:cuda:fp16"),
        ("eager:bf16:cuda", Target("eager", "bf16", "cuda"), "eager:cuda:bf16"),
    ],
)
def test_target_texts(text: str, parsed: Target, canonical: str) -> None:
    assert parse_target(text) == parsed
    assert str(parsed) == canonical
    assert parse_target(canonical) == parsed


def test_an_unknown_target_lists_the_known_ones(structured: ofx.Program) -> None:
    with pytest.raises(LoweringError) as error:
        lower(structured, "tensorflow:lite")
    assert str(error.value) == (
        "unknown target 'tensorflow:lite'\n  so  there is no engine to build\n"
        f"  fix use one of {', '.join(NAMES)}, with :precision or :device where needed, as in onnxruntime:cpu"
    )


def test_an_unknown_precision_lists_the_known_ones(structured: ofx.Program) -> None:
    with pytest.raises(LoweringError) as error:
        lower(structured, "onnxruntime:int3")
    assert str(error.value) == (
        "target onnxruntime does not take 'int3'\n  at  onnxruntime:int3\n  fix precisions: fp32, fp16; devices: cpu, cuda"
    )


def test_an_unknown_option_lists_the_known_ones(structured: ofx.Program) -> None:
    with pytest.raises(LoweringError) as error:
        lower(structured, "onnxruntime:cpu", thread=1)
    assert str(error.value) == (
        "target onnxruntime does not take the option 'thread'\n  fix use opset, threads, spinning, fusions_off"
    )  # fmt: skip


def test_a_name_is_registered_once() -> None:
    with pytest.raises(LoweringError) as error:
        register(targets()["eager"])
    assert str(error.value) == "a target named 'eager' is registered already\n  fix choose another name"


def test_autocast_around_lower_is_refused(structured: ofx.Program) -> None:
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(LoweringError) as error:
        lower(structured, "eager")
    assert str(error.value) == (
        "torch.autocast is on around lower\n  so  it would be ignored in silence: an exported program carries its dtypes\n"
        "  fix leave autocast, and lower to eager:fp16 or eager:bf16"
    )


@pytest.mark.parametrize(
    ("target", "package", "extra"),
    [
        ("onnx", "onnx", "onnx"),
        ("onnxruntime:cpu", "onnxruntime", "onnx"),
        ("openvino:cpu", "openvino", "openvino"),
        ("tensorrt-rtx", "tensorrt_rtx", "tensorrt"),
        ("tensorrt", "tensorrt", "tensorrt-full"),
    ],
)
def test_a_missing_extra_says_what_to_install(
    structured: ofx.Program, monkeypatch: pytest.MonkeyPatch, target: str, package: str, extra: str
) -> None:
    real = importlib.import_module

    def without(name: str, *args: Any) -> Any:
        if name == package:
            raise ImportError(name)
        return real(name, *args)

    monkeypatch.setattr(importlib, "import_module", without)
    with pytest.raises(MissingExtra) as error:
        lower(structured, target)
    assert f"needs the package '{package}', which is not installed\n  fix pip install 'optin-fx[{extra}]'" in str(error.value)


class Ranked(torch.nn.Module):
    """Its inputs, the larger ones first."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.gather(1, x.topk(3, 1).indices)


class Wrong(Engine):
    """An engine whose numbers are off."""

    def run(self, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        return [inputs[0] * 1.5]

    def _write(self, path: Path) -> list[Path]:
        raise NotImplementedError


def test_an_engine_that_disagrees_is_not_returned(monkeypatch: pytest.MonkeyPatch) -> None:
    def build(program: ofx.Program, target: Target, signature: Signature) -> Engine:
        return Wrong(target.text, signature)

    monkeypatch.setitem(registry._BACKENDS, "wrong", Backend("wrong", build, build))
    program = ofx.trace(torch.nn.Identity(), (torch.ones(2, 3),))
    with pytest.raises(LoweringError) as error:
        lower(program, "wrong")
    assert str(error.value) == (
        "the wrong:cpu engine disagrees with its program: max abs 5.0e-01, max rel 5.0e-01\n"
        "  at  tolerance 0.001 relative\n  so  the engine is not returned\n"
        "  fix pass tolerance= or check=False if that is good enough, or choose a higher precision"
    )
    ranked = ofx.trace(Ranked(), (torch.rand(2, 3),))
    with pytest.raises(LoweringError, match=r"near ties: topk \(.*test_registry\.py:\d+\) chooses by rank"):
        lower(ranked, "wrong")
    assert lower(program, "wrong", tolerance=0.6).closeness is not None
    assert lower(program, "wrong", check=False).closeness is None

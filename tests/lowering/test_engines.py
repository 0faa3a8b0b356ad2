"""What every engine must do: be called as the model is, survive its file, tell about itself, and change nothing of the program."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils import _pytree as pytree

import optin_fx as ofx
from optin_fx.errors import LoweringError, SaveError
from optin_fx.lowering import load_engine, lower
from optin_fx.lowering.closeness import TOLERANCE, closeness
from optin_fx.lowering.engine import sidecar_path

TARGETS = [
    "eager", "eager:bf16", "eager:fp16", "onnx", "onnx:fp16", "onnxruntime:cpu", "onnxruntime:fp16", "openvino:cpu",
    pytest.param("inductor", marks=pytest.mark.slow),
    pytest.param("aotinductor", marks=pytest.mark.slow),
]  # fmt: skip


@pytest.mark.parametrize("target", TARGETS)
def test_called_as_the_model_is_before_and_after_its_file(structured: ofx.Program, call: Any, tmp_path: Path, target: str) -> None:
    weights = {name: tensor.clone() for name, tensor in structured.tensors.items()}
    engine = lower(structured, target)
    path = engine.save(tmp_path / f"model{engine.suffix}")
    loaded = load_engine(path)
    args, kwargs = call(5)
    expected = structured(*args, **kwargs)
    limit = TOLERANCE[target.partition(":")[2] if "16" in target else "fp32"]
    for item in (engine, loaded):
        found = item(*args, **kwargs)
        assert pytree.tree_structure(found) == pytree.tree_structure(expected)
        assert found["hidden"].dtype == torch.float32
        assert found["best"].dtype == torch.int64
        floats = [[result["hidden"], *result["pair"]] for result in (found, expected)]
        assert closeness(*floats).within(limit)
        assert json.loads(json.dumps(item.info()))["target"].startswith(target.partition(":")[0])
    assert loaded.closeness == engine.closeness is not None
    assert loaded.signature == engine.signature
    assert all(torch.equal(weights[name], tensor) for name, tensor in structured.tensors.items())


@pytest.mark.parametrize("target", ["onnxruntime:cpu", "openvino:cpu", "eager:bf16"])
def test_outputs_do_not_change_when_the_engine_runs_again(structured: ofx.Program, call: Any, target: str) -> None:
    engine = lower(structured, target)
    args, kwargs = call(3)
    first = engine(*args, **kwargs)["hidden"]
    kept = first.clone()
    other_args, other_kwargs = call(3)
    engine(*other_args, **other_kwargs)
    assert torch.equal(first, kept)


@pytest.mark.parametrize("target", ["onnxruntime:cpu", "openvino:cpu"])
def test_outputs_returned_twice_and_inputs_returned(target: str) -> None:
    class Twice(nn.Module):
        def forward(self, x: torch.Tensor, unused: torch.Tensor) -> tuple[torch.Tensor, ...]:
            y = x.relu()
            return y, y, x, unused

    program = ofx.trace(Twice(), (torch.randn(2, 3), torch.randn(2)))
    engine = lower(program, target)
    x, unused = torch.randn(5, 3), torch.randn(5)
    for found, expected in zip(engine(x, unused), (x.relu(), x.relu(), x, unused), strict=True):
        torch.testing.assert_close(found, expected)


def test_strided_and_gradient_carrying_inputs(structured: ofx.Program) -> None:
    engine = lower(structured, "onnxruntime:cpu")
    x = torch.randn(4, 3, 8).transpose(0, 1).repeat(1, 1, 1)[:, :4].requires_grad_()
    torch.testing.assert_close(
        engine({"x": x}, scale=torch.ones(3), flag=True)["hidden"], structured({"x": x}, scale=torch.ones(3), flag=True)["hidden"]
    )


def test_a_suffix_is_added_and_folders_are_made(structured: ofx.Program, tmp_path: Path) -> None:
    path = lower(structured, "onnx").save(tmp_path / "deep" / "model")
    assert path == tmp_path / "deep" / "model.onnx"
    assert sidecar_path(path).is_file()


def test_a_place_that_cannot_be_written(structured: ofx.Program, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    path = tmp_path / "file" / "model.onnx"
    with pytest.raises(SaveError) as error:
        lower(structured, "onnx").save(path)
    assert str(error.value) == (
        f"cannot write the engine: File exists\n  at  {path}\n  so  nothing usable was saved\n"
        "  fix choose a folder that exists and that you may write to"
    )


def test_files_that_are_no_engines(structured: ofx.Program, tmp_path: Path) -> None:
    path = lower(structured, "onnx").save(tmp_path / "model.onnx")
    sidecar = sidecar_path(path)
    text = sidecar.read_text()

    def refusal() -> str:
        with pytest.raises(LoweringError) as error:
            load_engine(path)
        return str(error.value)

    path.write_bytes(path.read_bytes()[:-10])
    assert refusal() == (
        f"the engine file is corrupt: its bytes are not those that were saved\n  at  {path}\n"
        "  fix copy it again, or build it again with optin_fx.lowering.lower"
    )
    path.unlink()
    assert refusal() == f"a file of the engine is missing\n  at  {path}\n  fix copy all files that engine.save wrote"
    sidecar.write_text(text.replace('"format": 1', '"format": 9'))
    assert refusal() == (
        f"the engine has format 9, this version reads 1\n  at  {sidecar}\n  fix build the engine again with this version of optin-fx"
    )
    sidecar.write_text(text[:20])
    assert refusal().startswith("the sidecar is not readable: ")
    sidecar.unlink()
    assert refusal() == (
        f"no engine here: the sidecar is missing\n  at  {sidecar}\n  so  names, sizes and the call structure are unknown\n"
        "  fix write the engine with engine.save(path), and copy the .json file along with it"
    )


def test_closeness_of_special_values() -> None:
    inf = float("inf")
    same = closeness([torch.tensor([1.0, -inf, float("nan")])], [torch.tensor([1.0, -inf, float("nan")])])
    assert (same.max_abs, same.max_rel) == (0.0, 0.0)
    assert closeness([torch.tensor([1.0])], [torch.tensor([float("nan")])]).max_abs == inf
    assert closeness([torch.zeros(2)], [torch.zeros(3)]).max_rel == inf
    assert closeness([torch.tensor([1, 2])], [torch.tensor([1, 3])]).unequal == 0.5
    assert closeness([torch.zeros(0)], [torch.zeros(0)]).max_abs == 0.0


@pytest.mark.slow
def test_a_package_of_another_torch_is_refused(structured: ofx.Program, tmp_path: Path) -> None:
    from optin_fx.lowering import aotinductor
    from optin_fx.lowering.registry import Target
    from optin_fx.lowering.signature import Signature

    facts = {"tied_to": {"torch": "1.0", "instruction_set": "Z80"}}
    with pytest.raises(LoweringError) as error:
        aotinductor.load(tmp_path / "m.pt2", {"facts": facts}, Target("aotinductor", "fp32", "cpu"), Signature.of(structured))
    assert str(error.value).startswith("the package was compiled for 1.0, Z80; here is ")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.parametrize("target", ["eager:cuda", "inductor:cuda", "aotinductor:cuda"])
def test_no_cuda_device(structured: ofx.Program, target: str) -> None:
    with pytest.raises(LoweringError) as error:
        lower(structured, target)
    assert str(error.value) == (
        "there is no CUDA device here\n  so  nothing can be built for :cuda\n"
        "  fix lower to :cpu, or run this where torch.cuda.is_available() is true"
    )


@pytest.mark.parametrize("name", ["eager", "inductor", "aotinductor"])
def test_a_precision_that_the_device_lacks(structured: ofx.Program, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    with pytest.raises(LoweringError) as error:
        lower(structured, f"{name}:tf32")
    assert str(error.value) == (
        f"the cpu here has no tf32\n  at  {name}:cpu:tf32\n  so  it would compute in float32 and say nothing\n"
        f"  fix lower to {name}:cpu, or to {name}:cpu:fp16"
    )
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    for precision in ("tf32", "bf16"):
        with pytest.raises(LoweringError, match=f"^the cuda here has no {precision}\n"):
            lower(structured, f"{name}:cuda:{precision}")


def test_an_op_that_openvino_lacks_is_named_with_its_line() -> None:
    pytest.importorskip("openvino")

    class Determinant(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.linalg.det(x)

    with pytest.raises(LoweringError) as error:
        lower(ofx.trace(Determinant(), (torch.randn(2, 4, 4),)), "openvino:cpu")
    first, place, *rest = str(error.value).splitlines()
    assert first == "OpenVINO refuses the model: No conversion rule found for operations: Det-20"
    assert place.startswith("  at  Det ")
    assert "test_engines.py:" in place
    assert rest == ["  so  there is no engine", "  fix rewrite that line of the model with other ops, or lower to onnxruntime"]


@pytest.mark.gpu
@pytest.mark.parametrize("target", ["eager:cuda", "eager:cuda:tf32", "eager:cuda:fp16", "inductor:cuda", "aotinductor:cuda"])
def test_torch_engines_on_a_gpu(dense: ofx.Program, target: str) -> None:
    engine = lower(dense, target)
    assert engine.device == "cuda"
    assert engine(torch.randn(3, 32, 64)).device.type == "cpu"

"""TensorRT-RTX engines, built for real; its builder needs no GPU. Running them is marked `gpu`."""

from __future__ import annotations

import copy
import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import optin_fx as ofx
from optin_fx.errors import LoweringError
from optin_fx.lowering import Signature, load_engine, lower, tensorrt_build
from optin_fx.lowering.cuda_graph import captured
from optin_fx.lowering.engine import sidecar_path
from optin_fx.lowering.onnx_model import to_onnx
from optin_fx.lowering.tensorrt import gpu
from optin_fx.lowering.tensorrt_build import CAPABILITIES, build_plan, make_log, profile_of
from optin_fx.lowering.tensorrt_layers import engine_layers
from optin_fx.lowering.tensorrt_run import opened

trt = pytest.importorskip("tensorrt_rtx")
no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")


@pytest.mark.parametrize("precision", ["fp32", "tf32", "fp16", "bf16"])
def test_builds_in_every_precision(dense: ofx.Program, tmp_path: Path, precision: str) -> None:
    engine = lower(dense, f"tensorrt-rtx:{precision}")
    info = engine.info()
    assert info["profile"] == {"batch": [1, 2, 8]}
    assert info["capabilities"] == ["SM80", "SM86", "SM89", "SM120", "SM121"]
    assert (info["onnx_closeness"] is None) == (precision == "bf16" or torch.cuda.is_available())
    assert info["bytes"] > info["weight_bytes"]
    path = engine.save(tmp_path / "model")
    assert path.name == "model.engine"
    assert path.read_bytes() == load_engine(path).plan


@no_gpu
def test_without_a_gpu_it_is_built_and_saved_and_says_so(dense: ofx.Program, tmp_path: Path) -> None:
    engine = lower(dense, "tensorrt-rtx")
    assert engine.cannot_run == "there is no CUDA device here: built, not executed"
    assert engine.closeness is None
    facts = json.loads(sidecar_path(engine.save(tmp_path / "m.engine")).read_text())["facts"]
    assert facts["executed"] is False
    with pytest.raises(LoweringError) as error:
        engine(torch.randn(2, 32, 64))
    assert str(error.value) == (
        "this tensorrt-rtx:cuda engine was built, but cannot run here\n  at  there is no CUDA device here: built, not executed\n"
        "  so  it has not been executed: numerics and latency are unknown\n"
        "  fix save it with engine.save(path) and load it where the device is"
    )


def test_half_the_model_makes_a_smaller_engine(dense: ofx.Program, half: ofx.Program) -> None:
    whole, smaller = (lower(program, "tensorrt-rtx:fp16", check_onnx=False).info() for program in (dense, half))
    assert smaller["layers"] == whole["layers"]
    saved = whole["weight_bytes"] - smaller["weight_bytes"]
    assert whole["bytes"] - smaller["bytes"] > 0.7 * saved


def test_convolutions_in_bf16(cnn: ofx.Program) -> None:
    assert lower(cnn, "tensorrt-rtx:bf16").info()["opset"] == 22


def test_attention_nodes_must_be_marked_decomposable(dense: ofx.Program, monkeypatch: pytest.MonkeyPatch) -> None:
    assert lower(dense, "tensorrt-rtx", opset=23).info()["attention_decomposed"] == 3
    monkeypatch.setattr(tensorrt_build, "mark_decomposable", lambda module, network: 0)
    with pytest.raises(LoweringError, match="is_decomposable") as error:
        lower(dense, "tensorrt-rtx", opset=23)
    assert str(error.value).startswith("tensorrt_rtx did not build an engine: ")
    assert f"\n  at  tensorrt_rtx {trt.__version__}, fp32, for SM80, SM86, SM89, SM120, SM121\n" in str(error.value)


def test_unbounded_dims_are_refused_and_a_profile_helps() -> None:
    program = ofx.trace(nn.Linear(4, 4), (torch.randn(2, 4),))
    with pytest.raises(LoweringError) as error:
        lower(program, "tensorrt-rtx")
    assert str(error.value) == (
        "the dynamic dim 'batch' has no upper bound\n  so  TensorRT cannot plan memory and kernels for it\n"
        "  fix pass profile={'batch': (1, 4, 8)} (least, typical, most), or trace with torch.export.Dim('batch', max=8)"
    )
    assert lower(program, "tensorrt-rtx", profile={"batch": (1, 4, 8)}).info()["profile"] == {"batch": [1, 4, 8]}


def test_profiles_that_do_not_fit(dense: ofx.Program) -> None:
    signature = Signature.of(dense)

    def refusal(profile: Any) -> str:
        with pytest.raises(LoweringError) as error:
            profile_of(signature, profile, {"batch": 2})
        return str(error.value)

    assert refusal({"rows": (1, 2, 3)}) == "the profile speaks of 'rows', which is no dynamic dim of the program\n  fix use batch"
    assert refusal({"batch": (1, 4, 9)}) == (
        "the profile (1, 4, 9) of 'batch' does not fit\n  at  the program takes 0 to 8\n"
        "  fix give (least, typical, most) in this order and within those bounds"
    )
    assert refusal({"batch": (4, 2, 8)}).startswith("the profile (4, 2, 8) of 'batch' does not fit")
    assert profile_of(signature, None, {"batch": 20}) == {"batch": (1, 8, 8)}


def test_a_gpu_generation_that_rtx_does_not_build_for(dense: ofx.Program) -> None:
    with pytest.raises(LoweringError) as error:
        lower(dense, "tensorrt-rtx", capabilities=("SM90",))
    assert str(error.value).startswith(
        f"tensorrt_rtx {trt.__version__} does not build for SM90\n  so  there is no engine\n  fix choose from "
    )


def test_a_builder_that_returns_none_is_an_error_with_its_words(dense: ofx.Program) -> None:
    with pytest.raises(LoweringError, match="b16") as error:
        lower(dense, "tensorrt-rtx:bf16", capabilities=("SM75",))
    assert str(error.value).startswith("tensorrt_rtx did not build an engine: ")


def test_an_op_that_tensorrt_lacks_is_named_with_its_line(monkeypatch: pytest.MonkeyPatch) -> None:
    class Histogram(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.fft.fft(x).real

    program = ofx.trace(Histogram(), (torch.randn(2, 8),), dynamic_shapes={})
    with pytest.raises(LoweringError) as error:
        lower(program, "tensorrt-rtx")
    text = str(error.value)
    assert text.startswith("tensorrt_rtx refuses the model: ")
    assert "test_tensorrt.py:" in text
    assert text.endswith("\n  so  there is no engine\n  fix rewrite that line of the model with other ops, or lower to onnxruntime")


def test_an_engine_of_another_version_is_refused(dense: ofx.Program, tmp_path: Path) -> None:
    path = lower(dense, "tensorrt-rtx", check_onnx=False).save(tmp_path / "m.engine")
    sidecar = sidecar_path(path)
    sidecar.write_text(sidecar.read_text().replace(trt.__version__, "0.1"))
    with pytest.raises(LoweringError) as error:
        load_engine(path)
    assert str(error.value) == (
        f"the engine was built by tensorrt_rtx 0.1, here is {trt.__version__}\n  at  {path}\n"
        "  so  TensorRT reads its own version's engines only\n  fix build it again from the program with this version"
    )


class FakeFull:
    """Stands for the module `tensorrt`: the same names, without a choice of GPU generations."""

    __name__, __version__ = "tensorrt", "11.0"

    def __getattr__(self, name: str) -> Any:
        return getattr(trt, name)


@no_gpu
def test_full_tensorrt_builds_only_where_its_gpu_is(dense: ofx.Program, monkeypatch: pytest.MonkeyPatch) -> None:
    from optin_fx.lowering import tensorrt

    monkeypatch.setattr(tensorrt, "module_of", lambda name: FakeFull())
    with pytest.raises(LoweringError) as error:
        lower(dense, "tensorrt:fp16")
    assert str(error.value) == (
        "full TensorRT builds only on the GPU that the engine is for, and there is none here\n  so  there is no engine\n"
        "  fix lower to tensorrt-rtx, whose builder needs no GPU; or lower to onnx here and build from that file where the GPU is"
    )


def test_layers_are_told_without_a_gpu(dense: ofx.Program) -> None:
    engine = lower(dense, "tensorrt-rtx", check_onnx=False)
    layers = engine.layers()
    if engine.cannot_run:
        assert layers == engine.info()["network_layers"]
    assert sum(layers.values()) > 10


class Inspected:
    """A deserialized engine whose inspector says this."""

    def __init__(self, text: str) -> None:
        self.text = text

    def create_engine_inspector(self) -> Inspected:
        return self

    def get_engine_information(self, form: Any) -> str:
        return self.text


@pytest.mark.parametrize(
    ("text", "layers"),
    [
        ('{"Layers": [{"Name": "a", "LayerType": "gemm"}, {"LayerType": "cast"}, {"LayerType": "gemm"}]}', {"cast": 1, "gemm": 2}),
        ('{"Layers": ["a", "b"]}', {}),  # built without detailed profiling verbosity
        ("{}", {}),
        ("", {}),
    ],
)
def test_the_inspector_is_read_as_far_as_it_speaks(text: str, layers: dict[str, int]) -> None:
    assert engine_layers(trt, Inspected(text)) == layers


def test_rtx_takes_no_timing_cache_and_full_tensorrt_keeps_one(dense: ofx.Program, tmp_path: Path) -> None:
    path = tmp_path / "timing.cache"
    with pytest.raises(LoweringError) as error:
        lower(dense, "tensorrt-rtx", timing_cache=path)
    assert str(error.value) == (
        "TensorRT-RTX takes no timing cache: it measures nothing when it builds\n"
        "  fix leave timing_cache out; engine.save keeps what it compiles when it runs"
    )
    signature = Signature.of(dense)
    model = to_onnx(dense, signature)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of the module that stands for the full one
        build_plan(
            FakeFull(), model, signature, precision="fp32", profile=None, capabilities=("SM80",), example={"batch": 2}, timing_cache=path
        )
    assert path.stat().st_size > 0


def test_weights_are_fixed_unless_asked(dense: ofx.Program) -> None:
    engine = lower(dense, "tensorrt-rtx", check_onnx=False)
    with pytest.raises(LoweringError) as error:
        engine.refit(dense)
    assert str(error.value) == (
        "this engine's weights are fixed\n  so  it cannot be refitted\n"
        "  fix lower to tensorrt-rtx with refittable=True, on the GPU that it is for"
    )


def test_a_refittable_engine_is_for_one_gpu_generation(dense: ofx.Program) -> None:
    with pytest.raises(LoweringError) as error:
        lower(dense, "tensorrt-rtx", check_onnx=False, refittable=True)
    assert str(error.value) == (
        "tensorrt_rtx builds a refittable engine for one GPU generation, not for 5\n  fix choose one: capabilities=('SM80',)"
    )


@no_gpu
def test_a_refittable_engine_needs_a_driver_to_build(dense: ofx.Program) -> None:
    with pytest.raises(LoweringError, match="CUDA_SUCCESS") as error:
        lower(dense, "tensorrt-rtx", check_onnx=False, refittable=True, capabilities=("SM80",))
    assert str(error.value).startswith("tensorrt_rtx did not build an engine: ")


@no_gpu
def test_an_engine_for_another_gpu_is_refused(dense: ofx.Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from optin_fx.lowering import tensorrt

    path = lower(dense, "tensorrt-rtx", check_onnx=False, capabilities=("SM80",)).save(tmp_path / "m.engine")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(tensorrt, "gpu", lambda: "SM90")
    with pytest.raises(LoweringError) as error:
        load_engine(path)
    assert str(error.value) == (
        "the engine does not fit this GPU: the GPU here is SM90, the engine was built for SM80\n"
        f"  at  {path}\n  fix build it again with capabilities=('SM90',), or with the target tensorrt on this GPU"
    )


@no_gpu
def test_a_plan_that_tensorrt_cannot_open_is_refused_in_its_words(dense: ofx.Program) -> None:
    with pytest.raises(LoweringError) as error:
        opened(trt, b"nonsense", make_log(trt))
    assert str(error.value).startswith("tensorrt_rtx does not accept the engine here: ")
    assert str(error.value).endswith("\n  so  it cannot run\n  fix build it again for this GPU and this version")


def test_a_corrupt_engine_file_is_refused(dense: ofx.Program, tmp_path: Path) -> None:
    path = lower(dense, "tensorrt-rtx", check_onnx=False).save(tmp_path / "m.engine")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1  # one bit
    path.write_bytes(data)
    with pytest.raises(LoweringError, match="the engine file is corrupt: its bytes are not those that were saved"):
        load_engine(path)


def test_kernels_that_were_compiled_are_saved_and_read(dense: ofx.Program, tmp_path: Path) -> None:
    engine = lower(dense, "tensorrt-rtx", check_onnx=False)
    if not engine.cannot_run:
        engine(torch.randn(2, 32, 64))
    else:
        engine._runtime_cache = b"kernels"  # what a run on a GPU would leave
    loaded = load_engine(engine.save(tmp_path / "m.engine"))
    assert loaded._runtime_cache
    (tmp_path / "m.engine.kernels").write_bytes(b"others")
    with pytest.raises(LoweringError, match="the engine file is corrupt"):
        load_engine(tmp_path / "m.engine")


@pytest.mark.gpu
def test_new_weights_on_a_gpu(dense: ofx.Program) -> None:
    if gpu() not in CAPABILITIES:
        pytest.skip(f"TensorRT-RTX does not build for {gpu()}")
    engine = lower(dense, "tensorrt-rtx", refittable=True, capabilities=(gpu(),), tolerance=5e-2)
    other = copy.deepcopy(dense.exported)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.1)
    program = ofx.trace(other, dense.args)
    engine.refit(program)
    x = torch.randn(3, 32, 64)
    torch.testing.assert_close(engine(x), program(x), rtol=5e-2, atol=5e-2)


@pytest.mark.gpu
def test_a_captured_run_gives_the_same_on_a_gpu(dense: ofx.Program) -> None:
    engine = lower(dense, "tensorrt-rtx", tolerance=5e-2)
    if engine.cannot_run:
        pytest.skip(engine.cannot_run)
    x = torch.randn(3, 32, 64, device="cuda")
    (replayed,) = captured(engine, [x])()
    torch.cuda.synchronize()
    torch.testing.assert_close(replayed, engine.run([x])[0])


@pytest.mark.gpu
@pytest.mark.parametrize("target", ["tensorrt-rtx", "tensorrt-rtx:fp16", "tensorrt:fp16"])
def test_runs_on_a_gpu(dense: ofx.Program, tmp_path: Path, target: str) -> None:
    if target.startswith("tensorrt:"):
        pytest.importorskip("tensorrt")
    engine = lower(dense, target, tolerance=5e-2)
    if engine.cannot_run:
        pytest.skip(engine.cannot_run)
    x = torch.randn(5, 32, 64)
    loaded = load_engine(engine.save(tmp_path / "m.engine"))
    torch.testing.assert_close(loaded(x), dense(x), rtol=5e-2, atol=5e-2)

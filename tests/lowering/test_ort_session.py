"""The settings that make ONNX Runtime latencies comparable."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import optin_fx as ofx
from optin_fx.errors import LoweringError
from optin_fx.lowering import load_engine, lower
from optin_fx.lowering.ort_session import FUSIONS_OFF

ort = pytest.importorskip("onnxruntime")


def entry(engine: ofx.lowering.Engine, key: str) -> str:
    return engine.session.session.get_session_options().get_session_config_entry(key)


def test_idle_threads_do_not_spin_and_threads_are_fixed(dense: ofx.Program, tmp_path: Path) -> None:
    engine = lower(dense, "onnxruntime:cpu")
    options = engine.session.session.get_session_options()
    assert entry(engine, "session.intra_op.allow_spinning") == "0"
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (torch.get_num_threads(), 1)
    assert engine.info()["settings"] == {"threads": torch.get_num_threads(), "spinning": False, "fusions_off": ["SkipLayerNormFusion"]}
    loaded = load_engine(engine.save(tmp_path / "m.onnx"), threads=2, spinning=True, fusions_off=())
    assert entry(loaded, "session.intra_op.allow_spinning") == "1"
    assert loaded.info()["settings"] == {"threads": 2, "spinning": True, "fusions_off": []}


def test_the_fusion_has_that_name_and_is_off(tmp_path: Path) -> None:
    """ONNX Runtime ignores a name that it does not know, so look at the graph that it runs."""

    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.linear = nn.LayerNorm(16), nn.Linear(16, 16)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.linear(self.norm(x + self.linear(x)))

    path = lower(ofx.trace(Residual(), (torch.randn(2, 4, 16),)), "onnx").save(tmp_path / "m.onnx")
    found = {}
    for name, off in (("on", []), ("off", list(FUSIONS_OFF))):
        options = ort.SessionOptions()
        options.optimized_model_filepath = str(tmp_path / f"{name}.onnx")
        options.log_severity_level = 3
        ort.InferenceSession(path, options, disabled_optimizers=off)
        import onnx

        found[name] = {node.op_type for node in onnx.load(tmp_path / f"{name}.onnx").graph.node}
    assert "SkipLayerNormalization" in found["on"]
    assert "SkipLayerNormalization" not in found["off"]
    assert "LayerNormalization" in found["off"]


def test_a_run_that_fails_says_where_and_with_what(dense: ofx.Program) -> None:
    engine = lower(dense, "onnxruntime:cpu")
    with pytest.raises(LoweringError) as error:
        engine.run([torch.randn(2, 31, 64)])  # not through the call, which checks sizes
    text = str(error.value)
    assert text.startswith("ONNX Runtime failed to run: ")
    assert "Got: 31 Expected: 32" in text
    assert "\n  at  inputs x [2, 31, 64]; {'threads': " in text


@pytest.mark.skipif("CUDAExecutionProvider" in ort.get_available_providers(), reason="this onnxruntime has CUDA")
def test_no_cuda_provider(dense: ofx.Program) -> None:
    with pytest.raises(LoweringError) as error:
        lower(dense, "onnxruntime:cuda")
    assert str(error.value) == (
        f"this onnxruntime has no CUDAExecutionProvider\n"
        f"  at  onnxruntime {ort.__version__} with {', '.join(ort.get_available_providers())}\n"
        "  so  onnxruntime:cuda cannot run here\n"
        "  fix pip install onnxruntime-gpu in place of onnxruntime, or lower to onnxruntime:cpu"
    )


@pytest.mark.gpu
def test_on_a_gpu(dense: ofx.Program) -> None:
    if "CUDAExecutionProvider" not in ort.get_available_providers():
        pytest.skip("onnxruntime without CUDA")
    assert lower(dense, "onnxruntime:cuda", tolerance=2e-2).device == "cuda"


def test_an_op_without_a_kernel_is_named_with_its_line() -> None:
    class Doubles(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.conv2d(x, torch.ones(2, 3, 3, 3, dtype=torch.float64))

    program = ofx.trace(Doubles(), (torch.randn(2, 3, 8, 8, dtype=torch.float64),))
    with pytest.raises(LoweringError, match=r"^ONNX Runtime refuses the model: .*implementation for Conv") as error:
        lower(program, "onnxruntime:cpu")
    line = next(line for line in str(error.value).splitlines() if line.startswith("  at  "))
    assert line.startswith("  at  Conv node_")
    assert "test_ort_session.py:" in line
    assert line.endswith("on cpu")

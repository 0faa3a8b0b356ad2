"""The examples run, and what they return is right: each of them is a pipeline of somebody else with a step of ours in it."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Imports an example by name; skips where a package that it needs is not installed."""
    monkeypatch.syspath_prepend(str(EXAMPLES))

    def load(name: str, *needs: str) -> Any:
        for package in needs:
            pytest.importorskip(package)
        return importlib.import_module(name)

    return load


def test_every_example_is_tested() -> None:
    text = Path(__file__).read_text()
    names = sorted(path.stem for path in EXAMPLES.glob("*.py"))
    assert len(names) >= 6
    assert not [name for name in names if name != "classifier" and f'example("{name}"' not in text]


def test_in_torch_s_pass_manager(example: Any) -> None:
    found = example("graph_pass").main()
    assert found["after"] < 0.7 * found["before"]


def test_in_torch_compile(example: Any) -> None:
    found = example("torch_compile").main("aot_eager")
    assert found["from dense"] > 1e-3
    assert found["between both"] == 0.0


def test_in_front_of_executorch(example: Any) -> None:
    found = example("executorch_edge", "executorch").main()
    assert found["pruned bytes"] < 0.7 * found["dense bytes"]
    assert found["gap"] < 1e-5


@pytest.mark.slow
def test_in_openvino_s_own_flow(example: Any) -> None:
    found = example("openvino_flow", "openvino", "nncf").main()
    assert found["float"] < 1e-5
    assert 0 < found["int8"] < 0.1


def test_quantised_after_pruning(example: Any) -> None:
    found = example("quantise_after_pruning", "onnxruntime", "torchao").main()
    assert found["int8 bytes"] < 0.35 * found["pruned bytes"] < 0.35 * found["dense bytes"]
    assert found["int8 from its program"] < 0.02
    assert 1e-4 < found["int8 from pruned"] < 0.1


def test_in_front_of_torch_tensorrt(example: Any) -> None:
    module = example("torch_tensorrt_flow")
    if importlib.util.find_spec("torch_tensorrt") is None:
        with pytest.raises(ImportError, match="torch_tensorrt"):
            module.main()
        pytest.skip("torch_tensorrt is not installed: tested up to its import")
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    assert module.main()["gap"] < 1e-2

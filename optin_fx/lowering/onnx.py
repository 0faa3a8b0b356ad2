"""Target `onnx`: a portable `.onnx` file. It is checked by onnx.checker, and run through ONNX Runtime where that is installed."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from optin_fx.lowering.engine import Engine
from optin_fx.lowering.onnx_model import EXTERNAL_DATA_ABOVE, check_onnx, onnx_facts, require, to_onnx, weight_bytes, write_onnx
from optin_fx.lowering.ort_session import OrtSession, has_onnxruntime
from optin_fx.lowering.registry import Backend, Target
from optin_fx.lowering.signature import Signature
from optin_fx.program import Program


class OnnxEngine(Engine):
    """An ONNX model. `model` is an `onnx_ir.Model`; running it goes through ONNX Runtime."""

    suffix = ".onnx"

    def __init__(
        self, target: Target, signature: Signature, model: Any, facts: Mapping[str, Any], *, external_above: int, source: Path | None = None
    ) -> None:
        super().__init__(target.text, signature, facts)
        self.model, self._source = model, source
        self._external_above = external_above
        self._precision = target.precision
        self._session: OrtSession | None = None

    @property
    def cannot_run(self) -> str | None:
        if self._precision == "bf16":
            return "bf16: the CPU kernels of ONNX Runtime do not take bfloat16"
        return None if has_onnxruntime() else "onnxruntime is not installed"

    def run(self, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        if self._session is None:
            self._session = OrtSession(self._source or self.model, self.signature)
        return self._session.run(inputs)

    def _write(self, path: Path) -> list[Path]:
        files = write_onnx(self.model, path, external_above=self._external_above)
        check_onnx(path)
        return files


def build(
    program: Program,
    target: Target,
    signature: Signature,
    *,
    opset: int | None = None,
    optimize: bool = True,
    external_above: int = EXTERNAL_DATA_ABOVE,
) -> Engine:
    """Export to ONNX.

    Args:
        opset: by default 20, and 22 for bf16.
        optimize: let onnxscript fold constants and fuse.
        external_above: weights of more than this many bytes go to `<path>.data` beside the model.
    """
    model = to_onnx(program, signature, precision=target.precision, opset=opset, optimize=optimize)
    if weight_bytes(model) <= EXTERNAL_DATA_ABOVE:
        with tempfile.TemporaryDirectory() as folder:
            written = write_onnx(model, Path(folder) / "model.onnx")
            check_onnx(written[0])
    return OnnxEngine(target, signature, model, onnx_facts(model), external_above=external_above)


def load(path: Path, sidecar: Mapping[str, Any], target: Target, signature: Signature) -> Engine:
    """Read a saved model."""
    ir = require("onnx_ir", "onnx", needed_for="reading ONNX")
    external = EXTERNAL_DATA_ABOVE if len(sidecar["files"]) == 1 else 0
    return OnnxEngine(target, signature, ir.load(path), sidecar["facts"], external_above=external, source=path)


BACKEND = Backend(
    "onnx",
    build,
    load,
    precisions=("fp32", "fp16", "bf16"),
    packages=("onnxruntime", "onnx_ir"),
    what="portable .onnx file (opset 20; 22 for bf16), checked",
)

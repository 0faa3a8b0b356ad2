"""Target `openvino:cpu`, through ONNX: that keeps static sizes, which the converter from torch.export programs loses.

OpenVINO's CPU plugin runs bf16 where it can without being asked, and its `save_model` writes fp16 weights: both are switched off
unless the target says otherwise, and `info()` reports the precision that is really used.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from optin_fx.errors import LoweringError
from optin_fx.lowering.engine import Engine
from optin_fx.lowering.onnx_lines import refused_place
from optin_fx.lowering.onnx_model import require, to_onnx, write_onnx
from optin_fx.lowering.registry import Backend, Target
from optin_fx.lowering.signature import Signature
from optin_fx.program import Program

HINTS = {"fp32": "f32", "fp16": "f16", "bf16": "bf16"}


class OpenVinoEngine(Engine):
    """A compiled OpenVINO model."""

    suffix = ".xml"

    def __init__(self, target: Target, signature: Signature, model: Any, facts: Mapping[str, Any], *, threads: int | None) -> None:
        ov = require("openvino", "openvino", needed_for="the target openvino")
        super().__init__(target.text, signature, facts)
        self.model = model
        hint = HINTS[target.precision]
        threads = threads or torch.get_num_threads()
        wanted = {
            "INFERENCE_PRECISION_HINT": hint,
            "INFERENCE_NUM_THREADS": threads,
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
        }
        compiled = ov.Core().compile_model(model, target.device.upper(), wanted)
        used = str(compiled.get_property("INFERENCE_PRECISION_HINT").to_string())
        if used != hint:
            raise LoweringError(
                f"OpenVINO runs {used} on this {target.device} in place of {hint}",
                so=f"there is no {target.precision} engine",
                fix="lower to openvino:cpu without a precision",
            )
        self.facts["settings"] = {"threads": threads, "precision": used}
        self.facts["versions"] = {"openvino": ov.__version__}
        self._request = compiled.create_infer_request()

    def run(self, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        feeds = {leaf.name: tensor.detach().numpy() for leaf, tensor in zip(self.signature.tensor_inputs, inputs, strict=True)}
        found = self._request.infer(feeds, share_inputs=True)
        return [torch.from_numpy(found[index]) for index in range(len(found))]

    def _write(self, path: Path) -> list[Path]:
        ov = require("openvino", "openvino", needed_for="saving for OpenVINO")
        ov.save_model(self.model, str(path), compress_to_fp16=False)
        return [path, path.with_suffix(".bin")]


def build(
    program: Program, target: Target, signature: Signature, *, threads: int | None = None, opset: int | None = None
) -> OpenVinoEngine:
    """Export to ONNX in float32 and compile; half precision is OpenVINO's own, by hint.

    Args:
        threads: by default as many as torch uses.
        opset: ONNX opset, by default 20.
    """
    ov = require("openvino", "openvino", needed_for="the target openvino")
    with tempfile.TemporaryDirectory() as folder:
        onnx = to_onnx(program, signature, opset=opset)
        path = write_onnx(onnx, Path(folder) / "model.onnx")[0]
        core = ov.Core()
        core.set_property({"ENABLE_MMAP": False})  # the file is about to go
        try:
            model = core.read_model(str(path))
            return OpenVinoEngine(target, signature, model, {"nodes": len(model.get_ops())}, threads=threads)
        except RuntimeError as error:  # the only type that OpenVINO raises; its last line with words is the reason
            reason = [line.strip(" -") for line in str(error).splitlines() if line.strip()][-1]
            raise LoweringError(
                f"OpenVINO refuses the model: {reason[:300]}",
                at=refused_place(onnx, str(error)),
                so="there is no engine",
                fix="rewrite that line of the model with other ops, or lower to onnxruntime",
            ) from error


def load(path: Path, sidecar: Mapping[str, Any], target: Target, signature: Signature, *, threads: int | None = None) -> OpenVinoEngine:
    """Read and compile a saved model."""
    ov = require("openvino", "openvino", needed_for="the target openvino")
    return OpenVinoEngine(target, signature, ov.Core().read_model(str(path)), sidecar["facts"], threads=threads)


BACKEND = Backend(
    "openvino", build, load, precisions=("fp32", "fp16", "bf16"), packages=("openvino",), what="OpenVINO, fp32 unless asked otherwise"
)

"""Target `onnxruntime:cpu` (the embedded default) and `onnxruntime:cuda`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from optin_fx.lowering.engine import Engine
from optin_fx.lowering.onnx_model import EXTERNAL_DATA_ABOVE, check_onnx, onnx_facts, require, to_onnx, write_onnx
from optin_fx.lowering.ort_session import FUSIONS_OFF, OrtSession
from optin_fx.lowering.registry import Backend, Target
from optin_fx.lowering.signature import Signature
from optin_fx.program import Program


class OnnxRuntimeEngine(Engine):
    """An ONNX Runtime session over an ONNX model; `session.settings` says how it runs."""

    suffix = ".onnx"

    def __init__(self, target: Target, signature: Signature, model: Any, session: OrtSession, facts: Mapping[str, Any]) -> None:
        super().__init__(target.text, signature, {**facts, "settings": session.settings})
        self.model, self.session = model, session

    @property
    def device(self) -> str:
        return self.session.device

    def run(self, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        return self.session.run(inputs)

    def _write(self, path: Path) -> list[Path]:
        files = write_onnx(self.model, path, external_above=EXTERNAL_DATA_ABOVE)
        check_onnx(path)
        return files


def build(
    program: Program,
    target: Target,
    signature: Signature,
    *,
    opset: int | None = None,
    threads: int | None = None,
    spinning: bool = False,
    fusions_off: Sequence[str] = FUSIONS_OFF,
) -> Engine:
    """Export to ONNX and open a session; see `ort_session` for the defaults and why.

    Args:
        opset: ONNX opset, by default 20.
        threads: intra-op threads, by default as many as torch uses.
        spinning: let idle threads spin (lower latency for a single session that owns the machine).
        fusions_off: ORT optimizers to switch off.
    """
    require("onnxruntime", "onnx", needed_for="the target onnxruntime")
    model = to_onnx(program, signature, precision=target.precision, opset=opset)
    session = OrtSession(model, signature, device=target.device, threads=threads, spinning=spinning, fusions_off=fusions_off)
    return OnnxRuntimeEngine(target, signature, model, session, _facts(model))


def load(
    path: Path,
    sidecar: Mapping[str, Any],
    target: Target,
    signature: Signature,
    *,
    threads: int | None = None,
    spinning: bool = False,
    fusions_off: Sequence[str] = FUSIONS_OFF,
) -> Engine:
    """Open a session on a saved model; threads and the other settings are those of this machine, not the builder's."""
    session = OrtSession(path, signature, device=target.device, threads=threads, spinning=spinning, fusions_off=fusions_off)
    ir = require("onnx_ir", "onnx", needed_for="reading ONNX")
    return OnnxRuntimeEngine(target, signature, ir.load(path), session, sidecar["facts"])


def _facts(model: Any) -> dict[str, Any]:
    facts = onnx_facts(model)
    facts["versions"]["onnxruntime"] = require("onnxruntime", "onnx", needed_for="running ONNX models").__version__
    return facts


BACKEND = Backend(
    "onnxruntime",
    build,
    load,
    precisions=("fp32", "fp16"),
    devices=("cpu", "cuda"),
    packages=("onnxruntime", "onnx_ir"),
    what="ONNX Runtime; the embedded default on CPUs",
)

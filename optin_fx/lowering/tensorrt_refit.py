"""New weights for a TensorRT engine of the same structure, without building it again."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from optin_fx.errors import LoweringError
from optin_fx.lowering.onnx_model import write_onnx


def refitted(trt: Any, log: Any, engine: Any, model: Any) -> bytes:
    """The plan of a deserialized engine after the weights of an `onnx_ir.Model` were put into it.

    Raises:
        LoweringError: TensorRT does not take the weights; with its own words.
    """
    refitter = trt.Refitter(engine, log)
    parser = trt.OnnxParserRefitter(refitter, log)
    with tempfile.TemporaryDirectory() as folder:
        path = write_onnx(model, Path(folder) / "model.onnx")[0]
        if not parser.refit_from_file(str(path)) or not refitter.refit_cuda_engine():
            raise LoweringError(
                f"{trt.__name__} does not take the new weights: {log.worst()}",
                so="the engine is unchanged",
                fix="build a new engine; only one whose graph and shapes are the same can be refitted",
            )
    return bytes(engine.serialize())

"""Engines: a program made ready for ONNX Runtime, OpenVINO, TensorRT, TensorRT-RTX, inductor, or torch itself."""

from optin_fx.lowering import aotinductor, eager, inductor, onnx, onnxruntime, openvino, tensorrt, torch_tensorrt
from optin_fx.lowering.closeness import Closeness
from optin_fx.lowering.engine import Engine
from optin_fx.lowering.registry import Backend, Target, load_engine, lower, parse_target, register, targets
from optin_fx.lowering.signature import Signature

__all__ = [
    "Backend",
    "Closeness",
    "Engine",
    "Signature",
    "Target",
    "load_engine",
    "lower",
    "parse_target",
    "register",
    "targets",
]

for _backend in (
    onnxruntime.BACKEND,
    onnx.BACKEND,
    openvino.BACKEND,
    tensorrt.BACKEND,
    tensorrt.RTX_BACKEND,
    torch_tensorrt.BACKEND,
    inductor.BACKEND,
    aotinductor.BACKEND,
    eager.BACKEND,
):
    register(_backend)

"""Target `torch-tensorrt`: an engine of TensorRT or TensorRT-RTX that Torch-TensorRT makes from the program's ATen ops, without ONNX.

Which of the two it is depends on which Torch-TensorRT is installed. It asks for the GPU when it is imported, so that nothing is built
without one; and it builds for the GPU at hand. What comes out is a plain engine: running, saving and loading it are those of the targets
`tensorrt` and `tensorrt-rtx`, and need no Torch-TensorRT.
"""

from __future__ import annotations

import importlib.util
import logging
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from optin_fx.errors import LoweringError, MissingExtra
from optin_fx.lowering.eager import flat_module
from optin_fx.lowering.engine import Engine
from optin_fx.lowering.leaf import Leaf
from optin_fx.lowering.onnx_model import require
from optin_fx.lowering.precision import in_precision
from optin_fx.lowering.reexport import traceable_inputs
from optin_fx.lowering.registry import Backend, Target
from optin_fx.lowering.signature import Signature
from optin_fx.lowering.tensorrt import PRECISIONS, TensorRtEngine, example_sizes, gpu, load, module_of
from optin_fx.lowering.tensorrt_build import Profile, Sizes, profile_of, shapes_of
from optin_fx.program import Program
from optin_fx.source_lines import user_line

LOGGERS = ("torch_tensorrt", "torch_tensorrt [TensorRT Conversion Context]")


def build(
    program: Program,
    target: Target,
    signature: Signature,
    *,
    profile: Profile | None = None,
    timing_cache: str | Path | None = None,
) -> Engine:
    """Convert and build on the GPU here.

    Args:
        profile: symbol -> (least, typical, most) sizes; by default the program's bounds around the example's size.
        timing_cache: file that keeps what full TensorRT measures while it builds.
    """
    torch_tensorrt = imported()
    runtime = "tensorrt-rtx" if torch_tensorrt.ENABLED_FEATURES.tensorrt_rtx else "tensorrt"
    trt = module_of(runtime)
    if timing_cache is not None and runtime == "tensorrt-rtx":
        raise LoweringError("TensorRT-RTX takes no timing cache: it measures nothing when it builds", fix="leave timing_cache out")
    sizes = profile_of(signature, profile, example_sizes(program, signature))
    flat = flat_export(in_precision(program, target.precision), signature)
    with _refusals(program):
        plan = converted(torch_tensorrt, flat, signature, sizes, tf32=target.precision == "tf32", timing_cache=timing_cache)
    facts = {
        "runtime": runtime,
        "refittable": False,
        "network_layers": {},  # it does not say
        "profile": {name: list(limits) for name, limits in sizes.items()},
        "capabilities": [gpu()],
        "bytes": len(plan),
        "weight_bytes": sum(tensor.nbytes for tensor in flat.state_dict.values()),
        "versions": {"torch": torch.__version__, "torch_tensorrt": torch_tensorrt.__version__, trt.__name__: trt.__version__},
    }
    return TensorRtEngine(target, signature, plan, facts)


def imported() -> Any:
    """The package `torch_tensorrt`.

    Raises:
        MissingExtra: it is not installed.
        LoweringError: there is no GPU, which it wants to see before it can be imported.
    """
    if importlib.util.find_spec("torch_tensorrt") is None:
        raise MissingExtra("torch_tensorrt", "torch-tensorrt", needed_for="the target torch-tensorrt")
    if not torch.cuda.is_available():
        raise LoweringError(
            "Torch-TensorRT cannot even be imported without a CUDA device, and there is none here",
            so="there is no engine",
            fix="lower to tensorrt-rtx, whose builder needs no GPU",
        )
    return require("torch_tensorrt", "torch-tensorrt", needed_for="the target torch-tensorrt")


def flat_export(program: Program, signature: Signature) -> ExportedProgram:
    """The program once more, from a tuple of tensors to a list of tensors, as an engine has them."""
    args, kwargs = traceable_inputs(program)
    dynamic = tuple(
        {dim: torch.export.Dim.AUTO for dim, size in enumerate(leaf.sizes) if isinstance(size, str)} for leaf in signature.tensor_inputs
    )
    with torch.no_grad():
        return torch.export.export(flat_module(program), tuple(signature.flatten(args, kwargs)), dynamic_shapes=dynamic, strict=False)


def converted(
    torch_tensorrt: Any, flat: ExportedProgram, signature: Signature, sizes: Sizes, *, tf32: bool, timing_cache: str | Path | None
) -> bytes:
    """The serialized engine of a flat program, whose tensors are called as in the signature. Raises what Torch-TensorRT raises."""
    with tempfile.TemporaryDirectory() as folder:
        plan = torch_tensorrt.dynamo.convert_exported_program_to_serialized_trt_engine(
            flat,
            arg_inputs=tuple(_input(torch_tensorrt, leaf, sizes) for leaf in signature.tensor_inputs),
            arg_input_binding_names=tuple(leaf.name for leaf in signature.tensor_inputs),
            output_binding_names=pytree.tree_unflatten([leaf.name for leaf in signature.tensor_outputs], flat.call_spec.out_spec),
            disable_tf32=not tf32,
            decompose_attention=_uneven_attention(flat),
            attn_bias_is_causal=False,  # its default takes a mask of padding for a causal one, in models exported on a GPU
            require_full_compilation=True,
            timing_cache_path=str(timing_cache or Path(folder) / "timing.cache"),
        )
    return bytes(plan)


def _uneven_attention(flat: ExportedProgram) -> bool:
    """Whether some value heads are narrower than their query heads: TensorRT's attention layer takes one width, its products take any."""
    attentions = flat.graph.find_nodes(op="call_function", target=torch.ops.aten.scaled_dot_product_attention.default)
    return any(node.args[0].meta["val"].shape[-1] != node.args[2].meta["val"].shape[-1] for node in attentions)


def _input(torch_tensorrt: Any, leaf: Leaf, sizes: Sizes) -> Any:
    least, typical, most = shapes_of(leaf, sizes)
    if least == most:
        return torch_tensorrt.Input(shape=least, dtype=leaf.torch_dtype, name=leaf.name)
    return torch_tensorrt.Input(min_shape=least, opt_shape=typical, max_shape=most, dtype=leaf.torch_dtype, name=leaf.name)


class _Kept(logging.Handler):
    """Keeps what TensorRT logs as errors."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.name == LOGGERS[1]:
            self.lines.append(record.getMessage())


@contextmanager
def _refusals(program: Program) -> Iterator[None]:
    """Makes what Torch-TensorRT raises and logs one error, with the line of the model where it names an op."""
    kept = _Kept()
    loggers = [logging.getLogger(name) for name in LOGGERS]
    before = [logger.propagate for logger in loggers]
    for logger in loggers:
        logger.addHandler(kept)
        logger.propagate = False
    try:
        yield
    except Exception as error:  # many types, most of them a RuntimeError around another one
        cause = error.__cause__ or error
        reason = str(cause).strip() or (kept.lines or [type(cause).__name__])[0]
        raise LoweringError(
            f"Torch-TensorRT refuses the program: {reason.splitlines()[0][:400]}",
            at=_line_of(reason, program),
            so="there is no engine",
            fix="rewrite that line of the model with other ops, or lower to tensorrt-rtx or tensorrt, which go through ONNX",
        ) from error
    finally:
        for logger, propagate in zip(loggers, before, strict=True):
            logger.removeHandler(kept)
            logger.propagate = propagate


def _line_of(reason: str, program: Program) -> str | None:
    """Where the model has the op that the reason names."""
    for node in program.exported.graph.nodes:
        if node.op == "call_function" and re.search(rf"\b{re.escape(str(node.target))}\b", reason):
            return user_line(node.meta.get("stack_trace"))
    return None


BACKEND = Backend(
    "torch-tensorrt",
    build,
    load,
    precisions=PRECISIONS,
    devices=("cuda",),
    packages=("torch_tensorrt",),
    what="TensorRT or TensorRT-RTX by Torch-TensorRT, without ONNX, on the GPU that the engine is for",
)

"""A program as an ONNX model: exported, named, checked, written. The ONNX-based targets share it."""

from __future__ import annotations

import contextlib
import copy
import logging
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn
from torch.export import ExportedProgram, ModuleCallEntry
from torch.export.graph_signature import ExportGraphSignature, OutputKind, TensorArgument
from torch.utils import _pytree as pytree

from optin_fx.errors import LoweringError, MissingExtra
from optin_fx.lowering.exporter_error import reason, refused_node
from optin_fx.lowering.onnx_names import name_graph
from optin_fx.lowering.onnx_replacing import exportable
from optin_fx.lowering.onnx_shapes import make_shapes_constant
from optin_fx.lowering.onnx_translations import translations
from optin_fx.lowering.precision import in_precision
from optin_fx.lowering.signature import Signature
from optin_fx.program import Program

# Opset 20 is the portable one: from 23 on, attention becomes one `Attention` node, which TensorRT refuses in fp32 and for value
# heads narrower than query heads, and which gains nothing on CPUs. A valid bf16 `Conv` exists from opset 22 on.
OPSET = 20
OPSET_BF16 = 22
# protobuf's limit is 2 GiB; leave room for the graph itself
EXTERNAL_DATA_ABOVE = 2**31 - 2**27
NOISY = ("torch.onnx._internal.exporter._core", "onnxscript.optimizer._constant_folding")


def to_onnx(program: Program, signature: Signature, *, precision: str = "fp32", opset: int | None = None, optimize: bool = True) -> Any:
    """Export with torch's dynamo exporter.

    Args:
        program: the program.
        signature: names for inputs, outputs and dynamic dims.
        precision: `fp32` (also for tf32), `fp16` or `bf16`: arithmetic inside; inputs and outputs keep their dtypes.
        opset: ONNX opset, by default 20 (22 for bf16).
        optimize: let onnxscript fold constants and fuse, and make the shapes of reshapes constant.

    Returns:
        An `onnx_ir.Model`; its weights share memory with the program's.

    Raises:
        LoweringError: the exporter refuses an op, or the model is not valid ONNX.
        MissingExtra: onnx or onnxscript is not installed.
    """
    for package in ("onnx", "onnxscript"):
        require(package, "onnx", needed_for="lowering to ONNX")
    opset = opset or (OPSET_BF16 if precision == "bf16" else OPSET)
    if precision == "bf16" and opset < OPSET_BF16:
        raise LoweringError(
            f"bf16 needs opset {OPSET_BF16}, not {opset}",
            so="Conv takes no bfloat16 before that",
            fix=f"leave opset out, or pass {OPSET_BF16}",
        )
    precise = exportable(in_precision(program, precision))
    try:
        with quiet_exporter(), torch.no_grad():
            exported = torch.onnx.export(
                _exportable(precise.exported),
                precise.args,
                kwargs=precise.kwargs,
                dynamo=True,
                opset_version=opset,
                optimize=optimize,
                verbose=False,
                custom_translation_table=translations(precise.exported.graph),
            )
    except torch.onnx.errors.OnnxExporterError as error:
        raise LoweringError(
            f"the ONNX exporter refuses the program: {reason(error)}",
            at=refused_node(error, precise),
            so="there is no ONNX model",
            fix="rewrite that line of the model with other ops, or lower to eager, inductor or aotinductor",
        ) from error
    if exported is None:
        raise LoweringError("the ONNX exporter returned nothing", fix="lower to eager, inductor or aotinductor")
    model = exported.model
    if len(model.graph.outputs) != len(signature.tensor_outputs) or len(model.graph.inputs) != len(signature.tensor_inputs):
        raise LoweringError(
            f"the ONNX graph has {len(model.graph.inputs)} inputs and {len(model.graph.outputs)} outputs, "
            f"the program {len(signature.tensor_inputs)} and {len(signature.tensor_outputs)}",
            so="outputs cannot be matched with the model's",
            fix="return plain tensors from the model, and do not update buffers in forward",
        )
    name_graph(model, signature)
    if optimize:
        make_shapes_constant(model)
    one_float_dtype(model)
    return model


def _exportable(exported: ExportedProgram) -> ExportedProgram:
    """The same program, for the exporter: without gradients, without shape guards, and returning tensors only.

    With a gradient, the exporter decomposes attention twice, with two layouts, and a `view` of it fails (seen in T5). Guards are
    written by torch in terms of a local called L, which a `forward(*args)` does not have; sizes are checked by `Signature`, which
    also knows what else the program returns.
    """
    graph = copy.deepcopy(exported.graph)
    for node, original in zip(graph.nodes, exported.graph.nodes, strict=True):
        node.name = original.name  # a copy calls `input` `input_1`, and the signature speaks of names
        if node.op == "placeholder" and isinstance(node.meta.get("val"), torch.Tensor):
            node.meta["val"] = node.meta["val"].detach()
    signature, calls = _tensors_only(graph, exported)
    # by identity, so that tied weights stay one
    weights = {id(value): _without_gradient(value) for value in exported.state_dict.values()}
    prepared = ExportedProgram(
        root=exported.graph_module,
        graph=graph,
        graph_signature=signature,
        state_dict={name: weights[id(value)] for name, value in exported.state_dict.items()},
        range_constraints=exported.range_constraints,
        module_call_graph=calls,
        example_inputs=exported.example_inputs,
        constants=exported.constants,
        verifiers=exported.verifiers,
    )
    prepared._guards_code = []
    return prepared


def _tensors_only(graph: fx.Graph, exported: ExportedProgram) -> tuple[ExportGraphSignature, list[ModuleCallEntry]]:
    """Leave all but tensors out of what the graph returns; the signature and the call structure that go with it."""
    (output,) = graph.find_nodes(op="output")
    specs = exported.graph_signature.output_specs
    kept = [(value, spec) for value, spec in zip(output.args[0], specs, strict=True) if isinstance(spec.arg, TensorArgument)]
    output.args = (tuple(value for value, _ in kept),)
    signature = replace(exported.graph_signature, output_specs=[spec for _, spec in kept])
    calls = list(exported.module_call_graph)
    if calls[0].signature is not None:
        count = sum(spec.kind is OutputKind.USER_OUTPUT for _, spec in kept)
        flat = replace(calls[0].signature, out_spec=pytree.tree_structure((0,) * count))
        calls[0] = replace(calls[0], signature=flat)
    return signature, calls


def _without_gradient(value: torch.Tensor) -> torch.Tensor:
    detached = value.detach()
    return nn.Parameter(detached, requires_grad=False) if isinstance(value, nn.Parameter) else detached


def one_float_dtype(model: Any) -> None:
    """Refuse convolutions and products whose weight has another float dtype than their input.

    Folding a bf16 BatchNorm into its Conv leaves float32 weights on bfloat16 inputs: invalid, and nobody says so.
    """
    for node in model.graph:
        if node.op_type not in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
            continue
        dtypes = {value.dtype for value in node.inputs if value is not None and value.dtype is not None}
        if len(dtypes) > 1:
            raise LoweringError(
                f"ONNX node {node.name} ({node.op_type}) mixes {' and '.join(sorted(dtype.name for dtype in dtypes))}",
                at=str(node.metadata_props.get("pkg.torch.onnx.fx_node", "")).splitlines()[0][:200] or None,
                so="the model is not valid ONNX",
                fix="fold BatchNorm into its convolution before lowering in bf16, or lower in fp32 or fp16",
            )


def check_onnx(path: Path) -> None:
    """Run onnx.checker on a written model, with shape inference.

    Raises:
        LoweringError: with the checker's reason.
    """
    import onnx

    try:
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise LoweringError(
            f"onnx.checker refuses the model: {str(error).splitlines()[0][:300]}",
            at=str(path),
            so="no engine would load it",
            fix="please report this with the model: an exported program should always be valid ONNX",
        ) from error


def write_onnx(model: Any, path: Path, *, external_above: int = EXTERNAL_DATA_ABOVE) -> list[Path]:
    """Write the model, with weights in `<path>.data` if they take more than `external_above` bytes; returns the files."""
    import onnx_ir as ir

    if weight_bytes(model) <= external_above:
        ir.external_data.load_to_model(model)  # a model that was loaded may still point to its old file
        ir.save(model, path)
        return [path]
    data = path.with_name(path.name + ".data")
    ir.save(model, path, external_data=data.name)
    return [path, data]


def weight_bytes(model: Any) -> int:
    """Bytes of all initialisers."""
    return sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value is not None)


def op_counts(model: Any) -> dict[str, int]:
    """Op type -> number of nodes."""
    counts: dict[str, int] = {}
    for node in model.graph:
        counts[node.op_type] = counts.get(node.op_type, 0) + 1
    return dict(sorted(counts.items()))


def onnx_facts(model: Any) -> dict[str, Any]:
    """JSON-able facts about an ONNX model."""
    counts = op_counts(model)
    return {
        "opset": model.opset_imports.get(""),
        "nodes": sum(counts.values()),
        "ops": counts,
        "weight_bytes": weight_bytes(model),
        "versions": {"torch": torch.__version__, "onnx": require("onnx", "onnx", needed_for="lowering to ONNX").__version__},
    }


def require(package: str, extra: str, *, needed_for: str) -> Any:
    """Import a package, or say which extra to install."""
    import importlib

    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise MissingExtra(package, extra, needed_for=needed_for) from error


@contextlib.contextmanager
def quiet_exporter() -> Iterator[None]:
    """Silence notes on leaves that are no tensors (the signature carries those) and on constants that are not folded."""
    loggers = [logging.getLogger(name) for name in NOISY]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)

"""ONNX -> TensorRT plan, the same code for the Python modules `tensorrt` and `tensorrt_rtx`.

What is measured and guarded here:

* networks are strongly typed: there is no fp16 or bf16 flag, the ONNX model's dtypes decide; TF32 is a flag that TensorRT sets
  by default, and it is cleared unless the target says tf32;
* an `Attention` node (opset 23 and later) fails to build in fp32 unless it is marked decomposable;
* the builder reports failure by returning None and writing to its log: the log is kept and becomes the error;
* REFIT needs a driver in TensorRT-RTX, also to build; timing caches are for full TensorRT only (`tensorrt_cache`).
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optin_fx.errors import LoweringError
from optin_fx.lowering.engine import sha256
from optin_fx.lowering.leaf import Leaf
from optin_fx.lowering.onnx_lines import place_of
from optin_fx.lowering.onnx_model import write_onnx
from optin_fx.lowering.signature import Signature
from optin_fx.lowering.symbols import evaluated
from optin_fx.lowering.tensorrt_cache import keep_timing_cache, use_timing_cache
from optin_fx.lowering.tensorrt_layers import network_layers

# SM75 has no fp32 products in TensorRT-RTX; SM90 and SM100 are not offered by it at all: those need full TensorRT.
CAPABILITIES = ("SM80", "SM86", "SM89", "SM120", "SM121")
Profile = Mapping[str, tuple[int, int, int]]
"""What the caller says: symbol -> (least, typical, most) size."""
Sizes = Mapping[str, tuple[int, int, int]]
"""The same for every symbol of a program."""


@dataclass(frozen=True)
class Plan:
    """A serialized engine.

    Attributes:
        data: its bytes.
        facts: what the network looked like when it was built (layers, inputs, outputs, profile, capabilities, log).
    """

    data: bytes
    facts: Mapping[str, Any]


def build_plan(
    trt: Any,
    model: Any,
    signature: Signature,
    *,
    precision: str,
    profile: Profile | None,
    capabilities: Sequence[str],
    example: Mapping[str, int],
    timing_cache: Path | None = None,
    refittable: bool = False,
) -> Plan:
    """Parse an `onnx_ir.Model` and build.

    Args:
        trt: the module `tensorrt` or `tensorrt_rtx`.
        model: the ONNX model, already in the target's precision.
        signature: names and dynamic sizes.
        precision: `fp32`, `tf32`, `fp16` or `bf16`.
        profile: symbol -> (least, typical, most) sizes; by default the program's bounds around the example's size.
        capabilities: GPU generations to build for, where the module lets one choose.
        example: symbol -> size in the example inputs.
        timing_cache: file that keeps what full TensorRT measures while it builds.
        refittable: let weights be replaced later.

    Raises:
        LoweringError: a dynamic dim without bounds, an op that TensorRT refuses, or a failed build; with TensorRT's own words.
    """
    sizes = profile_of(signature, profile, example)
    log = make_log(trt)
    builder = trt.Builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    with tempfile.TemporaryDirectory() as folder:
        path = write_onnx(model, Path(folder) / "model.onnx")[0]
        onnx_hash = sha256(path)
        if not parser.parse_from_file(str(path)):
            raise _refused(trt, parser, model)
        decomposed = mark_decomposable(trt, network)
        config = builder.create_builder_config()
        (config.set_flag if precision == "tf32" else config.clear_flag)(trt.BuilderFlag.TF32)
        chosen = _set_capabilities(trt, config, capabilities)
        if refittable:
            _allow_refit(trt, config, chosen)
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # for the inspector; engines are no larger with it
        use_timing_cache(trt, config, timing_cache)
        if sizes:
            config.add_optimization_profile(_profile(builder, network, signature, sizes))
        data = builder.build_serialized_network(network, config)
    if data is None:
        raise LoweringError(
            f"{trt.__name__} did not build an engine: {log.worst()}",
            at=f"{trt.__name__} {trt.__version__}, {precision}, for {', '.join(chosen) or 'the GPU here'}",
            so="there is no engine",
            fix="lower to another precision, or to onnxruntime; the message above is TensorRT's own",
        )
    keep_timing_cache(config, timing_cache)
    facts = {
        "layers": network.num_layers,
        "network_layers": network_layers(network),
        "refittable": refittable,
        "profile": {name: list(limits) for name, limits in sizes.items()},
        "capabilities": list(chosen),
        "attention_decomposed": decomposed,
        "onnx_sha256": onnx_hash,
        "bytes": data.nbytes,
        "log": log.lines[-20:],
    }
    return Plan(bytes(data), facts)


def profile_of(signature: Signature, profile: Profile | None, example: Mapping[str, int]) -> dict[str, tuple[int, int, int]]:
    """Least, typical and most size per symbol."""
    unknown = sorted(set(profile or {}) - set(signature.bounds))
    if unknown:
        raise LoweringError(
            f"the profile speaks of {unknown[0]!r}, which is no dynamic dim of the program",
            fix=f"use {', '.join(signature.bounds) or 'no profile: every size is fixed'}",
        )
    found = {}
    for name, (low, high) in signature.bounds.items():
        limits = (profile or {}).get(name)
        if limits is None and high is None:
            raise LoweringError(
                f"the dynamic dim {name!r} has no upper bound",
                so="TensorRT cannot plan memory and kernels for it",
                fix=f"pass profile={{{name!r}: (1, 4, 8)}} (least, typical, most), or trace with torch.export.Dim({name!r}, max=8)",
            )
        if limits is None and high is not None:
            least = max(1, low)
            limits = (least, min(max(example.get(name, least), least), high), high)
        assert limits is not None
        if list(limits) != sorted(limits) or limits[0] < max(low, 0) or (high is not None and limits[2] > high):
            raise LoweringError(
                f"the profile {tuple(limits)} of {name!r} does not fit",
                at=f"the program takes {low} to {'any' if high is None else high}",
                fix="give (least, typical, most) in this order and within those bounds",
            )
        found[name] = (int(limits[0]), int(limits[1]), int(limits[2]))
    return found


def shapes_of(leaf: Leaf, sizes: Sizes) -> tuple[tuple[int, ...], ...]:
    """The least, the typical and the largest shape of an input."""
    cases = [{name: limits[which] for name, limits in sizes.items()} for which in range(3)]
    return tuple(tuple(evaluated(size, case) for size in leaf.sizes) for case in cases)


def mark_decomposable(trt: Any, network: Any) -> int:
    """Let every attention layer be taken apart where there is no fused kernel for it (there is none in fp32); returns how many."""
    kind = getattr(trt.LayerType, "ATTENTION_INPUT", None)
    count = 0
    for index in range(network.num_layers if kind is not None else 0):
        layer = network.get_layer(index)
        if layer.type == kind:
            layer.__class__ = trt.IAttentionInputLayer
            layer.attention.decomposable = True
            count += 1
    return count


def make_log(trt: Any) -> Any:
    """A logger that keeps warnings and errors as text."""

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.lines: list[str] = []
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.Severity.WARNING:
                self.lines.append(message)
            if severity <= trt.ILogger.Severity.ERROR:
                self.errors.append(message)

        def worst(self) -> str:
            return (self.errors or self.lines or ["no reason given"])[0][:600]

    return Log()


def _set_capabilities(trt: Any, config: Any, capabilities: Sequence[str]) -> tuple[str, ...]:
    if not hasattr(config, "set_compute_capability"):
        return ()
    offered = {name: value for name, value in trt.ComputeCapability.__members__.items() if name.startswith("SM")}
    for name in capabilities:
        if name not in offered:
            raise LoweringError(
                f"{trt.__name__} {trt.__version__} does not build for {name}",
                so="there is no engine",
                fix=f"choose from {', '.join(offered)}; other GPUs need full TensorRT (target tensorrt)",
            )
    config.num_compute_capabilities = len(capabilities)
    for index, name in enumerate(capabilities):
        config.set_compute_capability(offered[name], index)
    return tuple(capabilities)


def _allow_refit(trt: Any, config: Any, chosen: Sequence[str]) -> None:
    if len(chosen) > 1:
        raise LoweringError(
            f"{trt.__name__} builds a refittable engine for one GPU generation, not for {len(chosen)}",
            fix=f"choose one: capabilities=({chosen[0]!r},)",
        )
    config.set_flag(trt.BuilderFlag.REFIT)


def _profile(builder: Any, network: Any, signature: Signature, sizes: Sizes) -> Any:
    profile = builder.create_optimization_profile()
    present = {network.get_input(index).name for index in range(network.num_inputs)}
    for leaf in signature.tensor_inputs:
        if leaf.name in present and any(isinstance(size, str) for size in leaf.sizes):
            profile.set_shape(leaf.name, *shapes_of(leaf, sizes))
    return profile


def _refused(trt: Any, parser: Any, model: Any) -> LoweringError:
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    first = errors[0] if errors else None
    name = first.node_name() if first else ""
    node = next((node for node in model.graph if node.name == name), None)
    return LoweringError(
        f"{trt.__name__} refuses the model: {first.desc()[:400] if first else 'no reason given'}",
        at=place_of(node) if node is not None else name or None,
        so="there is no engine",
        fix="rewrite that line of the model with other ops, or lower to onnxruntime",
    )

"""Where the time of a run goes, by operator, as the engines' own profilers see it; programs are run in turns."""

from __future__ import annotations

import json
import re
import statistics
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.utils import _pytree as pytree

import optin_fx as ofx
from optin_fx.lowering import Signature
from optin_fx.lowering.onnxruntime import OnnxRuntimeEngine

Times = dict[str, dict[str, float]]
"""By program and operator, milliseconds per run."""


def by_onnxruntime(programs: Mapping[str, ofx.Program], batch: int, runs: int) -> Times:
    """ONNX Runtime's profiler, with the settings of the target `onnxruntime:cpu`."""
    with tempfile.TemporaryDirectory() as folder:
        sessions = {label: _session(program, Path(folder) / str(i)) for i, (label, program) in enumerate(programs.items())}
        feeds = [tensor.numpy() for tensor in _inputs(programs, batch)]
        for _ in range(runs):
            for session in sessions.values():
                session.run(None, dict(zip((i.name for i in session.get_inputs()), feeds, strict=True)))
        return {label: _by_operator(Path(session.end_profiling()), runs) for label, session in sessions.items()}


def by_aotinductor(programs: Mapping[str, ofx.Program], batch: int, runs: int) -> Times:
    """Torch's profiler over packages whose generated kernels report themselves; kernels are named after the ops in them."""
    with torch._inductor.config.patch({"cpp.enable_kernel_profile": True}):
        engines = {label: ofx.lower(program, "aotinductor", check=False) for label, program in programs.items()}
    inputs = _inputs(programs, batch)
    times: dict[str, dict[str, list[float]]] = {label: defaultdict(list) for label in engines}
    for _ in range(2):  # the first runs pack and allocate
        for engine in engines.values():
            engine.run(inputs)
    for _ in range(runs):
        for label, engine in engines.items():
            for operator, time in _profiled(engine, inputs).items():
                times[label][operator].append(time)
    return {label: {name: statistics.median(values) for name, values in found.items()} for label, found in times.items()}


PROFILERS: dict[str, Callable[[Mapping[str, ofx.Program], int, int], Times]] = {
    "onnxruntime:cpu": by_onnxruntime,
    "aotinductor": by_aotinductor,
}


def _inputs(programs: Mapping[str, ofx.Program], batch: int) -> list[torch.Tensor]:
    """The flat example inputs with so many rows."""
    program = next(iter(programs.values()))
    args, kwargs = Signature.of(program).resized(program.args, program.kwargs, {"batch": batch})
    return [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]


def _session(program: ofx.Program, prefix: Path) -> Any:
    """A profiling session with the settings that the target `onnxruntime:cpu` has."""
    import onnxruntime as ort

    engine = ofx.lower(program, "onnxruntime:cpu")
    assert isinstance(engine, OnnxRuntimeEngine)
    path, settings = engine.save(prefix.with_suffix(".onnx")), engine.session.settings
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = settings["threads"], 1
    options.enable_profiling, options.profile_file_prefix = True, str(prefix)
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"], disabled_optimizers=settings["fusions_off"])


def _by_operator(trace: Path, runs: int) -> dict[str, float]:
    """Milliseconds per run by operator: of every node the median over runs, so that other work on the machine hardly counts."""
    times: dict[tuple[str, str], list[float]] = {}
    for event in json.loads(trace.read_text()):
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            times.setdefault((event["args"]["op_name"], event["name"]), []).append(event["dur"] / 1e3)
    found: Counter[str] = Counter()
    for (operator, _), values in times.items():
        found[operator] += sorted(values)[len(values) // 2] * len(values) / runs
    return dict(found)


def _profiled(engine: ofx.lowering.Engine, inputs: list[torch.Tensor]) -> dict[str, float]:
    """Operator -> milliseconds of its own, in one run."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        engine.run(inputs)
    found: Counter[str] = Counter()
    for event in profile.key_averages():
        # graph_0_cpp_fused_add_native_layer_norm_7 and aoti_torch_cpu_mkldnn__convolution_pointwise
        name = re.sub(r"^(graph_\d+_|aoti_torch_cpu_)+|_\d+$", "", event.key)
        found[name] += event.self_cpu_time_total / 1e3
    return dict(found)

"""Targets `tensorrt` (full TensorRT, which builds on the GPU that it is for) and `tensorrt-rtx` (whose builder needs no GPU).

Without a GPU the engine is built and saved, says so, and has not been executed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from optin_fx.errors import LoweringError, MissingExtra
from optin_fx.lowering.check import advice, agreement
from optin_fx.lowering.closeness import TOLERANCE
from optin_fx.lowering.engine import Engine
from optin_fx.lowering.onnx import OnnxEngine
from optin_fx.lowering.onnx_model import EXTERNAL_DATA_ABOVE, onnx_facts, require, to_onnx
from optin_fx.lowering.registry import Backend, Target
from optin_fx.lowering.signature import Signature
from optin_fx.lowering.tensorrt_build import CAPABILITIES, Profile, build_plan, make_log
from optin_fx.lowering.tensorrt_layers import engine_layers
from optin_fx.lowering.tensorrt_refit import refitted
from optin_fx.lowering.tensorrt_run import Session, opened
from optin_fx.program import Program

MODULES = {"tensorrt": ("tensorrt", "tensorrt-full"), "tensorrt-rtx": ("tensorrt_rtx", "tensorrt")}


class TensorRtEngine(Engine):
    """A TensorRT plan. `plan` holds its bytes; `cannot_run` says why where it was built only.

    Attributes:
        runtime: `tensorrt` or `tensorrt-rtx`: which of the two runs the plan.
    """

    suffix = ".engine"

    def __init__(
        self, target: Target, signature: Signature, plan: bytes, facts: Mapping[str, Any], runtime_cache: bytes | None = None
    ) -> None:
        super().__init__(target.text, signature, facts)
        self.plan, self._target, self._runtime_cache = plan, target, runtime_cache
        self.runtime: str = self.facts["runtime"]
        self._opened: Session | None = None
        self.facts["executed"] = False

    @property
    def device(self) -> str:
        return "cuda"

    @property
    def cannot_run(self) -> str | None:
        if not torch.cuda.is_available():
            return "there is no CUDA device here: built, not executed"
        here, built = gpu(), self.facts["capabilities"]
        if built and here not in built:
            return f"the GPU here is {here}, the engine was built for {', '.join(built)}"
        return None

    @property
    def capturable(self) -> bool:
        return True

    @property
    def _session(self) -> Session:
        if self._opened is None:
            self._opened = Session(module_of(self.runtime), self.plan, self.signature, self._runtime_cache)
        return self._opened

    def run(self, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        self.facts["executed"] = True
        return self._session.run(inputs)

    def layers(self) -> dict[str, int]:
        """Layer type -> how many: of the engine, by its inspector; where that says nothing or cannot be asked here, of the network.

        Empty where neither is known (the inspector says nothing of an engine that Torch-TensorRT built).
        """
        found = engine_layers(module_of(self.runtime), self._session.engine) if self.cannot_run is None else {}
        return found or dict(self.facts["network_layers"])

    def refit(self, program: Program) -> None:
        """Take the weights of another program of the same graph and shapes, without building again.

        Raises:
            LoweringError: it was not built with `refittable=True`, cannot run here, or TensorRT does not take the weights.
        """
        if not self.facts["refittable"]:
            raise LoweringError(
                "this engine's weights are fixed",
                so="it cannot be refitted",
                fix=f"lower to {self.runtime} with refittable=True, on the GPU that it is for",
            )
        self.require_runnable()
        trt = module_of(self.runtime)
        model = to_onnx(program, self.signature, precision=self._target.precision, opset=self.facts["opset"])
        log = make_log(trt)
        _, engine = opened(trt, self.plan, log)
        self.plan, self._opened = refitted(trt, log, engine, model), None
        self.facts["program"] = program.fingerprint

    def _write(self, path: Path) -> list[Path]:
        path.write_bytes(self.plan)
        kernels = self._opened.runtime_cache() if self._opened is not None else self._runtime_cache
        if not kernels:
            return [path]
        cache_path(path).write_bytes(kernels)
        return [path, cache_path(path)]


def cache_path(path: Path) -> Path:
    """Where the kernels lie that TensorRT-RTX compiled when the engine ran."""
    return path.with_name(path.name + ".kernels")


def _checked_onnx(model: Any, program: Program, target: Target, signature: Signature) -> dict[str, float] | None:
    """Where the plan cannot run, the ONNX model that it was made from still can, in ONNX Runtime (but for bf16)."""
    engine = OnnxEngine(Target("onnx", target.precision, "cpu"), signature, model, {}, external_above=EXTERNAL_DATA_ABOVE)
    if torch.cuda.is_available() or engine.cannot_run:
        return None
    found = agreement(engine, program)
    if not found.within(TOLERANCE[target.precision]):
        raise LoweringError(
            f"the ONNX model disagrees with its program: {found}",
            at=f"tolerance {TOLERANCE[target.precision]:g} relative, in ONNX Runtime",
            so="the engine is not returned",
            fix=advice(program, "choose a higher precision, or pass check_onnx=False"),
        )
    return asdict(found)


def module_of(name: str) -> Any:
    """The Python module that builds and runs engines of `tensorrt` or `tensorrt-rtx`, or what to install."""
    module, extra = MODULES[name]
    found = require(module, extra, needed_for=f"the target {name}")
    # once the Torch-TensorRT of TensorRT-RTX is imported, `tensorrt` is another name of `tensorrt_rtx`
    if getattr(found, "_package_name", module) != module:
        raise MissingExtra(module, extra, needed_for=f"the target {name}")
    return found


def gpu() -> str:
    """The GPU here as `SM80`."""
    major, minor = torch.cuda.get_device_capability()
    return f"SM{major}{minor}"


def _builder(name: str) -> Callable[..., Engine]:
    def build(
        program: Program,
        target: Target,
        signature: Signature,
        *,
        profile: Profile | None = None,
        capabilities: Sequence[str] = CAPABILITIES,
        opset: int | None = None,
        check_onnx: bool = True,
        timing_cache: str | Path | None = None,
        refittable: bool = False,
    ) -> Engine:
        trt = module_of(name)
        if name == "tensorrt" and not torch.cuda.is_available():
            raise LoweringError(
                "full TensorRT builds only on the GPU that the engine is for, and there is none here",
                so="there is no engine",
                fix="lower to tensorrt-rtx, whose builder needs no GPU; or lower to onnx here and build from that file where the GPU is",
            )
        model = to_onnx(program, signature, precision=target.precision, opset=opset)
        plan = build_plan(
            trt,
            model,
            signature,
            precision=target.precision,
            profile=profile,
            capabilities=capabilities,
            example=example_sizes(program, signature),
            timing_cache=Path(timing_cache) if timing_cache is not None else None,
            refittable=refittable,
        )
        onnx = onnx_facts(model)
        agrees = _checked_onnx(model, program, target, signature) if check_onnx else None
        facts = {**plan.facts, "runtime": name, "onnx_closeness": agrees, "onnx_nodes": onnx["nodes"], "opset": onnx["opset"]}
        facts["weight_bytes"] = onnx["weight_bytes"]
        facts["versions"] = {**onnx["versions"], trt.__name__: trt.__version__}
        if name == "tensorrt":
            facts["capabilities"] = [gpu()]
        return TensorRtEngine(target, signature, plan.data, facts)

    return build


def load(path: Path, sidecar: Mapping[str, Any], target: Target, signature: Signature) -> Engine:
    """Read a saved engine; what built it is not needed."""
    trt = module_of(sidecar["facts"]["runtime"])
    built = sidecar["facts"]["versions"].get(trt.__name__)
    if built != trt.__version__:
        raise LoweringError(
            f"the engine was built by {trt.__name__} {built}, here is {trt.__version__}",
            at=str(path),
            so="TensorRT reads its own version's engines only",
            fix="build it again from the program with this version",
        )
    kernels = cache_path(path)
    runtime_cache = kernels.read_bytes() if kernels.name in sidecar["files"] else None
    engine = TensorRtEngine(target, signature, path.read_bytes(), sidecar["facts"], runtime_cache)
    if torch.cuda.is_available() and engine.cannot_run:
        raise LoweringError(
            f"the engine does not fit this GPU: {engine.cannot_run}",
            at=str(path),
            fix=f"build it again with capabilities=({gpu()!r},), or with the target tensorrt on this GPU",
        )
    return engine


def example_sizes(program: Program, signature: Signature) -> dict[str, int]:
    """Symbol -> its size in the program's example inputs."""
    sizes: dict[str, int] = {}
    for tensor, leaf in zip(signature.flatten(program.args, program.kwargs), signature.tensor_inputs, strict=True):
        sizes.update({size: tensor.shape[dim] for dim, size in enumerate(leaf.sizes) if isinstance(size, str)})
    return sizes


PRECISIONS = ("fp32", "tf32", "fp16", "bf16")
BACKEND = Backend(
    "tensorrt",
    _builder("tensorrt"),
    load,
    precisions=PRECISIONS,
    devices=("cuda",),
    packages=("tensorrt",),
    what="TensorRT, on the GPU that the engine is for",
)
RTX_BACKEND = Backend(
    "tensorrt-rtx",
    _builder("tensorrt-rtx"),
    load,
    precisions=PRECISIONS,
    devices=("cuda",),
    packages=("tensorrt_rtx",),
    what="TensorRT-RTX; builds without a GPU, for SM80, 86, 89, 120 and 121",
)

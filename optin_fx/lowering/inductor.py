"""Target `inductor`: `torch.compile` on cpu or cuda. It compiles at the first call of each kind of shape."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from optin_fx.errors import LoweringError
from optin_fx.lowering.eager import EagerEngine, require_hardware, tf32
from optin_fx.lowering.precision import in_precision
from optin_fx.lowering.registry import Backend, Target
from optin_fx.lowering.signature import Signature
from optin_fx.program import Program
from optin_fx.program import load as load_program


class InductorEngine(EagerEngine):
    """The program's graph module, compiled by inductor. What is saved is the program: it compiles again where it is loaded."""

    def __init__(
        self,
        target: Target,
        signature: Signature,
        program: Program,
        facts: Mapping[str, Any] | None = None,
        *,
        mode: str | None,
        freezing: bool,
    ) -> None:
        super().__init__(target, signature, program, facts)
        self.facts["settings"] = {"mode": mode, "freezing": freezing}
        options: dict[str, Any] | None = {"freezing": True} if freezing else None
        if mode and freezing:
            raise LoweringError("torch.compile takes a mode or freezing, not both", fix="leave out one of them")
        self._call = torch.compile(self._call, mode=mode, options=options)

    def run(self, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        # inference tensors are refused by parts of inductor
        with torch.no_grad(), tf32(self._tf32):
            return list(self._call(*inputs))


def build(program: Program, target: Target, signature: Signature, *, mode: str | None = None, freezing: bool = False) -> InductorEngine:
    """Compile lazily.

    Args:
        mode: of `torch.compile`; "reduce-overhead" uses CUDA graphs.
        freezing: treat weights as constants, so that they are packed once.
    """
    require_hardware(target)
    require_compiler(target)
    return InductorEngine(target, signature, in_precision(program, target.precision), mode=mode, freezing=freezing)


def load(
    path: Path, sidecar: Mapping[str, Any], target: Target, signature: Signature, *, mode: str | None = None, freezing: bool = False
) -> InductorEngine:
    """Read the saved program; it is compiled at the first call."""
    require_hardware(target)
    require_compiler(target)
    return InductorEngine(target, signature, load_program(path), sidecar["facts"], mode=mode, freezing=freezing)


def require_compiler(target: Target) -> None:
    """Refuse where inductor's CPU code cannot be compiled."""
    from torch._inductor import cpp_builder, exc

    if target.device != "cpu":
        return
    try:
        cpp_builder.get_cpp_compiler()
    except exc.InvalidCxxCompiler as error:
        raise LoweringError(
            "there is no C++ compiler here",
            so=f"{target.name} cannot compile for the cpu",
            fix="install g++ or clang++, or set CXX to one; or lower to eager or onnxruntime",
        ) from error


BACKEND = Backend(
    "inductor",
    build,
    load,
    precisions=("fp32", "tf32", "fp16", "bf16"),
    devices=("cpu", "cuda"),
    what="torch.compile; needs a C++ compiler on the cpu",
)

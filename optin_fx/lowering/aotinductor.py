"""Target `aotinductor`: a compiled package that torch loads without the model's code. It is tied to torch's version and to the
instruction set of the machine that it was compiled on, and refuses elsewhere."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils import _pytree as pytree

from optin_fx.errors import LoweringError
from optin_fx.lowering.eager import on_device, require_hardware, tf32
from optin_fx.lowering.engine import Engine
from optin_fx.lowering.inductor import require_compiler
from optin_fx.lowering.precision import in_precision
from optin_fx.lowering.registry import Backend, Target
from optin_fx.lowering.signature import Signature
from optin_fx.program import Program


class AotInductorEngine(Engine):
    """A package of `torch._inductor.aoti_compile_and_package`."""

    suffix = ".pt2"

    def __init__(self, target: Target, signature: Signature, package: Path, facts: Mapping[str, Any]) -> None:
        super().__init__(target.text, signature, facts)
        self._package, self._device, self._tf32 = package, target.device, target.precision == "tf32"
        self._call = torch._inductor.aoti_load_package(str(package))

    @property
    def device(self) -> str:
        return self._device

    @property
    def capturable(self) -> bool:
        return self._device == "cuda"

    def run(self, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        args, kwargs = self.signature.call(inputs)
        with torch.no_grad(), tf32(self._tf32):
            outputs = self._call(*args, **kwargs)
        return [leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, torch.Tensor)]

    def _write(self, path: Path) -> list[Path]:
        shutil.copyfile(self._package, path)
        return [path]


def build(program: Program, target: Target, signature: Signature, *, freezing: bool = True) -> AotInductorEngine:
    """Compile ahead of time.

    Args:
        freezing: treat weights as constants, so that they are packed once; without it a CPU package is slower than eager.
    """
    require_hardware(target)
    require_compiler(target)
    precise = on_device(in_precision(program, target.precision), target.device)
    folder = tempfile.mkdtemp(prefix="optin-fx-")
    package = Path(folder) / "model.pt2"
    with torch.no_grad(), tf32(target.precision == "tf32"):
        torch._inductor.aoti_compile_and_package(precise.exported, package_path=str(package), inductor_configs={"freezing": freezing})
    facts = {"settings": {"freezing": freezing}, "tied_to": tied_to(target), "bytes": package.stat().st_size}
    engine = AotInductorEngine(target, signature, package, facts)
    weakref.finalize(engine, shutil.rmtree, folder)
    return engine


def load(path: Path, sidecar: Mapping[str, Any], target: Target, signature: Signature) -> AotInductorEngine:
    """Load a package that was compiled on a machine like this one."""
    require_hardware(target)
    here, there = tied_to(target), sidecar["facts"]["tied_to"]
    if here != there:
        raise LoweringError(
            f"the package was compiled for {', '.join(map(str, there.values()))}; here is {', '.join(map(str, here.values()))}",
            at=str(path),
            so="its machine code may not run",
            fix="compile it again here: lower(program, 'aotinductor')",
        )
    return AotInductorEngine(target, signature, path, sidecar["facts"])


def tied_to(target: Target) -> dict[str, str]:
    """What a package depends on."""
    if target.device == "cuda":
        return {"torch": torch.__version__, "gpu": torch.cuda.get_device_name()}
    return {"torch": torch.__version__, "instruction_set": torch.backends.cpu.get_cpu_capability()}


BACKEND = Backend(
    "aotinductor",
    build,
    load,
    precisions=("fp32", "tf32", "fp16", "bf16"),
    devices=("cpu", "cuda"),
    what="compiled torch package for machines like this one",
)

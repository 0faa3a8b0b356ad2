"""Target `eager`: torch itself, on cpu or cuda, in fp32, tf32, fp16 or bf16."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import fx
from torch.export.passes import move_to_device_pass
from torch.utils import _pytree as pytree

from optin_fx.errors import LoweringError
from optin_fx.lowering.engine import Engine
from optin_fx.lowering.precision import in_precision
from optin_fx.lowering.registry import Backend, Target
from optin_fx.lowering.signature import Signature
from optin_fx.program import Program
from optin_fx.program import load as load_program

AMPERE = (8, 0)  # the first GPUs with TF32 and bfloat16


class EagerEngine(Engine):
    """The program's graph module, run by torch without gradients."""

    suffix = ".pt2"

    def __init__(self, target: Target, signature: Signature, program: Program, facts: Mapping[str, Any] | None = None) -> None:
        super().__init__(target.text, signature, {**(facts or {}), "versions": {"torch": torch.__version__}})
        self.program = program
        self._device, self._tf32 = target.device, target.precision == "tf32"
        module = flat_module(on_device(program, target.device))
        self._call: Any = module

    @property
    def device(self) -> str:
        return self._device

    @property
    def capturable(self) -> bool:
        return self._device == "cuda"

    def run(self, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        with torch.inference_mode(), tf32(self._tf32):
            outputs = self._call(*inputs)
        return list(outputs)

    def _write(self, path: Path) -> list[Path]:
        return [self.program.save(path)]


def build(program: Program, target: Target, signature: Signature) -> Engine:
    """Wrap the program; in half precision it is traced again with casts."""
    require_hardware(target)
    return EagerEngine(target, signature, in_precision(program, target.precision))


def load(path: Path, sidecar: Mapping[str, Any], target: Target, signature: Signature) -> Engine:
    """Read the saved program."""
    require_hardware(target)
    return EagerEngine(target, signature, load_program(path), sidecar["facts"])


def require_hardware(target: Target) -> None:
    """Refuse a device that is not here, and a precision that the device would replace by another one in silence."""
    if target.device == "cuda" and not torch.cuda.is_available():
        raise LoweringError(
            "there is no CUDA device here",
            so="nothing can be built for :cuda",
            fix="lower to :cpu, or run this where torch.cuda.is_available() is true",
        )
    older = target.device == "cuda" and torch.cuda.get_device_capability() < AMPERE
    if (target.precision == "tf32" and target.device == "cpu") or (target.precision in ("tf32", "bf16") and older):
        raise LoweringError(
            f"the {target.device} here has no {target.precision}",
            at=target.text,
            so="it would compute in float32 and say nothing",
            fix=f"lower to {target.name}:{target.device}, or to {target.name}:{target.device}:fp16",
        )


def on_device(program: Program, device: str) -> Program:
    """The program with weights and device constants on `device`; the program itself on the cpu."""
    if device == "cpu":
        return program
    moved = move_to_device_pass(copy.deepcopy(program.exported), device)
    return Program(moved, program.args, program.kwargs, provenance=program.provenance)


def flat_module(program: Program) -> fx.GraphModule:
    """The graph as `tensor inputs -> list of tensor outputs`, without pytrees and without leaves that are no tensors."""
    module = copy.copy(program.exported.module(check_guards=False))
    graph = fx.Graph()
    copied: dict[fx.Node, fx.Node] = {}
    result = graph.graph_copy(module.graph, copied)
    leaves = pytree.tree_leaves(result)
    graph.output([leaf for leaf in leaves if isinstance(leaf, fx.Node) and isinstance(leaf.meta.get("val"), torch.Tensor)])
    graph.eliminate_dead_code()
    for node in list(graph.nodes):
        if node.op == "placeholder" and not isinstance(node.meta.get("val"), torch.Tensor):
            graph.erase_node(node)
    return fx.GraphModule(module, graph)


class tf32:
    """Context: float32 products and convolutions in TF32, or exactly in float32; cuDNN takes TF32 unless told otherwise."""

    def __init__(self, enabled: bool) -> None:
        self.enabled = enabled

    def __enter__(self) -> None:
        self.before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
        torch.set_float32_matmul_precision("high" if self.enabled else "highest")
        torch.backends.cudnn.allow_tf32 = self.enabled

    def __exit__(self, *_: object) -> None:
        torch.set_float32_matmul_precision(self.before[0])
        torch.backends.cudnn.allow_tf32 = self.before[1]


BACKEND = Backend(
    "eager", build, load, precisions=("fp32", "tf32", "fp16", "bf16"), devices=("cpu", "cuda"), what="torch, operator by operator"
)

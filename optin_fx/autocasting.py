"""Which casts `torch.autocast` makes, found by watching it: what an exported region under autocast leaves unsaid.

Autocast casts what an op reads when the op is called, below the level at which `torch.export` records. Each op of a region is called
with fake tensors, with and without autocast, and the copies that only the former makes of the op's own operands are the casts.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx
from torch._guards import detect_fake_mode
from torch._ops import HigherOrderOperator, OpOverload
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from optin_fx.attributes import attribute

aten = torch.ops.aten


class _Copies(TorchDispatchMode):
    """Notes into which dtype each of some tensors is copied."""

    def __init__(self, tensors: Sequence[torch.Tensor]) -> None:
        super().__init__()
        self.tensors, self.found = list(tensors), dict[int, torch.dtype]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is aten._to_copy.default and result.dtype is not args[0].dtype:
            places = [i for i, tensor in enumerate(self.tensors) if tensor is args[0]]
            self.found |= dict.fromkeys(places, result.dtype)
        return result


def casts_of(body: fx.GraphModule, device: str, dtype: torch.dtype) -> dict[fx.Node, dict[fx.Node, torch.dtype]] | None:
    """For every op of a region under autocast, the operands that it casts, and to what; None if they cannot be told for sure."""
    found: dict[fx.Node, dict[fx.Node, torch.dtype]] = {}
    for node in body.graph.nodes:
        if isinstance(node.target, HigherOrderOperator) and (node.target.name() != "wrap_with_autocast" or node.args[0] != device):
            return None  # what is inside is under this autocast, too, which would be lost
        if node.op != "call_function" or not isinstance(node.target, OpOverload):
            continue
        operands = [n for n in node.all_input_nodes if isinstance(n.meta.get("val"), torch.Tensor)]
        if any("val" not in n.meta for n in node.all_input_nodes) or any(n.meta["val"].device.type != device for n in operands):
            return None
        casts = _casts(node, operands, device, dtype)
        if casts is None:
            return None
        found[node] = casts
    return found


def _casts(node: fx.Node, operands: list[fx.Node], device: str, dtype: torch.dtype) -> dict[fx.Node, torch.dtype] | None:
    values = [operand.meta["val"] for operand in operands]
    if not any(value.is_floating_point() for value in values) or node.target._schema.is_mutable:  # type: ignore[union-attr]
        return {}
    watched, plain = _Copies(values), _Copies(values)
    with torch.autocast(device, dtype=dtype, cache_enabled=False):
        _called(node, {}, watched)
    with contextlib.suppress(RuntimeError):  # dtypes that only autocast brings together
        _called(node, {}, plain)
    casts = {operands[i]: to for i, to in watched.found.items() if plain.found.get(i) is not to}
    dtypes = [leaf.dtype for leaf in pytree.tree_leaves(node.meta.get("val")) if isinstance(leaf, torch.Tensor)]
    return casts if _called(node, casts, _Copies(())) == dtypes else None


def dtypes_hold(module: fx.GraphModule) -> bool:
    """Whether every op of a graph gives the dtype that was recorded for it.

    Export drops an autocast around `no_grad` from the graph, but not from what it records, which is then no ground to tell casts by.
    """
    given = [node.meta.get("val") for node in module.graph.nodes if node.op == "placeholder"]
    mode = detect_fake_mode(given)
    if mode is None:
        return False
    try:
        with mode, torch.no_grad():
            _Checked(module, garbage_collect_values=True).run(*given, enable_io_processing=False)
    except (RuntimeError, TypeError):
        return False
    return True


class _Checked(fx.Interpreter):
    """Runs on fake tensors; raises where a dtype is not the recorded one."""

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        value, mode = attribute(self.module, target), detect_fake_mode()
        return mode.from_tensor(value) if mode is not None and isinstance(value, torch.Tensor) else value

    def run_node(self, n: fx.Node) -> Any:
        result, recorded = super().run_node(n), n.meta.get("val")
        if n.op == "call_function" and isinstance(recorded, torch.Tensor) and result.dtype is not recorded.dtype:
            raise TypeError(f"{n.name} is {result.dtype}, not {recorded.dtype}")
        return result


def _called(node: fx.Node, casts: dict[fx.Node, torch.dtype], watch: _Copies) -> list[torch.dtype]:
    """The dtypes of a call's results on fake tensors, with some operands cast before."""

    def value(operand: fx.Node) -> Any:
        return operand.meta["val"].to(casts[operand]) if operand in casts else operand.meta["val"]

    mode = detect_fake_mode([n.meta["val"] for n in node.all_input_nodes])
    assert mode is not None
    with mode, torch.no_grad():
        args, kwargs = fx.map_arg((node.args, node.kwargs), value)
        with watch:
            result = node.target(*args, **kwargs)  # type: ignore[operator]
    return [leaf.dtype for leaf in pytree.tree_leaves(result) if isinstance(leaf, torch.Tensor)]

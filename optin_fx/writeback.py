"""Write-back: cut the parameters of the user's own eager module, so that it computes what the smaller program computes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from optin_fx.attributes import from_memory_order, in_memory_order, storage_key
from optin_fx.dims import positions
from optin_fx.errors import WriteBackError
from optin_fx.plan import Cut, Plan, resolve
from optin_fx.program import Program
from optin_fx.rewriting import slice_graph
from optin_fx.verifying import Agreement
from optin_fx.writeback_attributes import choices
from optin_fx.writeback_trial import Changes, Ledger, named_tensors, try_out

RECORD = "write_back"
"""Key in a plan's provenance under which `restore` finds what it cannot read off a state dict."""


@dataclass(frozen=True)
class WriteBack:
    """What a write-back did.

    Attributes:
        agreement: the module against the smaller program, on the program's example inputs.
        attributes: dotted attribute name to its value before and after.
        tensors: names of the parameters and buffers that were cut or given new values.
        plan: the plan, with the record that lets `restore` work without tracing.
    """

    agreement: Agreement
    attributes: Mapping[str, tuple[int, int]]
    tensors: tuple[str, ...]
    plan: Plan

    def __bool__(self) -> bool:
        return self.agreement.equal

    def __str__(self) -> str:
        lines = [f"{len(self.tensors)} tensors written; the module and the smaller program are {self.agreement}"]
        return "\n".join(lines + [f"  {name}: {old} -> {new}" for name, (old, new) in self.attributes.items()])


def apply_to(model: nn.Module, program: Program, plan: Plan, small: Program | None = None) -> WriteBack:
    """Cut the parameters and buffers of an eager module in place; integer attributes such as `num_heads` follow.

    Parameters stay the same objects (ties hold), with new contents and without gradients; optimisers made before do not fit
    any more. A copy is cut and run first, so that on any error the module is exactly as it was.

    Args:
        model: the module that `program` was traced from, with the same weights.
        program, plan: the dense program and what to keep of it.
        small: the smaller program, if its weights are wanted (compensated, or trained further); default: the kept weights.

    Raises:
        WriteBackError: the module's code cannot follow, or the module is not the program's.
        PlanError: the plan does not fit the program.
    """
    changes, done = prepare(model, program, plan, small)
    commit(model, changes)
    return done


def prepare(model: nn.Module, program: Program, plan: Plan, small: Program | None = None) -> tuple[Changes, WriteBack]:
    """All of `apply_to` but the last step: what is to change, after a copy has survived it."""
    cut = resolve(program, plan)
    gone = [name for name, units in plan.kept.items() if not units]
    if gone:
        raise WriteBackError(
            f"the plan removes whole branches: {', '.join(gone)}",
            so="the module's code would still run them; nothing was changed",
            fix="keep at least one unit of each, or stay with the smaller program (`pruned.module()`)",
        )
    _check_same(model, program)
    changes = _tensors(model, program, cut, small)
    found = choices(model, cut)
    result = try_out(model, changes, found, cut, small.graph_module if small is not None else slice_graph(program, cut))
    before = {(path, name): vars(model.get_submodule(path))[name] for path, name in changes.attributes}
    attributes = {".".join(filter(None, key)): (before[key], new) for key, new in changes.attributes.items()}
    record = {
        "attributes": {name: list(values) for name, values in attributes.items()},
        "buffers": _unsaved_buffers(model, changes, cut),
    }
    written = tuple(name for name, tensor in named_tensors(model).items() if id(tensor) in changes.tensors) + tuple(changes.added)
    return changes, WriteBack(result, attributes, written, replace(plan, provenance={**plan.provenance, RECORD: record}))


def commit(model: nn.Module, changes: Changes) -> Ledger:
    """Make the changes on a live model, all or none. The ledger can take them back."""
    ledger = Ledger()
    try:
        for tensor in {id(t): t for t in named_tensors(model).values()}.values():
            if id(tensor) in changes.tensors:
                ledger.data(tensor, changes.tensors[id(tensor)])
        for name, parameter in changes.added.items():
            path, _, leaf = name.rpartition(".")
            ledger.parameter(model.get_submodule(path), leaf, parameter)
        for (path, name), value in changes.attributes.items():
            ledger.attribute(model.get_submodule(path), name, value)
    except BaseException:
        ledger.undo()
        raise
    return ledger


def _check_same(model: nn.Module, program: Program) -> None:
    own = named_tensors(model)
    for name, tensor in program.tensors.items():
        mine = own.get(name)
        if mine is None and isinstance(tensor, nn.Parameter):
            raise _another(f"it has no parameter {name}")
        if mine is not None and mine.shape != tensor.shape:
            raise _another(f"{name} is {list(mine.shape)} in the module, {list(tensor.shape)} in the program")
        if mine is not None and not torch.equal(mine.detach().cpu(), tensor.detach().cpu()):
            raise _another(f"{name} has other values in the program")


def _another(where: str) -> WriteBackError:
    return WriteBackError(
        "the module is not the one that the program was traced from",
        at=where,
        so="what is cut here would not be what was pruned there; nothing was changed",
        fix="pass the module that was traced, unchanged since; for a state dict use ofx.restore(fresh_model, plan, state_dict)",
    )


def _tensors(model: nn.Module, program: Program, cut: Cut, small: Program | None) -> Changes:
    """New values of the module's tensors: those of `small`, or the kept slices."""
    own = named_tensors(model)
    holders: dict[Any, list[torch.Tensor]] = {}
    for tensor in own.values():
        holders.setdefault(storage_key(tensor), []).append(tensor)
    changes = Changes()
    values: dict[Any, tuple[str, torch.Tensor]] = {}
    for node in program.graph_module.graph.nodes:
        name = str(node.target)
        if node.op != "get_attr" or name not in program.tensors:
            continue
        kept = [positions(axis, cut.units) for axis in cut.analysis.axes[node.name]]
        if name not in own:
            if any(index is not None for index in kept):
                raise WriteBackError(
                    "a constant that the module's code makes would have to be cut",
                    at=name,
                    so="code cannot be cut; nothing was changed",
                    fix="register it as a buffer, or stay with the smaller program (`pruned.module()`)",
                )
            continue
        mine = own[name]
        value = small.tensors.get(name) if small is not None else None
        if value is None:
            value = mine.detach()
            for dim, index in enumerate(kept):
                value = value if index is None else value.index_select(dim, index.to(value.device))
            if all(index is None for index in kept):
                continue
        key = storage_key(mine)
        before = values.get(key)
        memory = in_memory_order(value.detach(), mine)
        if before is not None and small is not None and name in small.tensors and not torch.equal(before[1], memory):
            raise WriteBackError(
                "tied parameters have different values in the smaller program",
                at=f"{before[0]} and {name}",
                so="the module cannot hold both; nothing was changed",
                fix="stay with the smaller program (`pruned.module()`)",
            )
        values[key] = (name, memory)
        if value.shape == mine.shape and torch.equal(value.detach().to(mine.device), mine.detach()):
            continue
        fresh = in_memory_order(value.detach().to(device=mine.device, dtype=mine.dtype, copy=True).contiguous(), mine)
        for tensor in holders[key]:
            changes.tensors[id(tensor)] = from_memory_order(fresh, tensor)
    for name, tensor in (small.tensors if small is not None else {}).items():
        if name not in program.tensors and isinstance(tensor, nn.Parameter):
            changes.added[name] = _new_parameter(model, name, tensor)
    return changes


def _new_parameter(model: nn.Module, name: str, value: torch.Tensor) -> nn.Parameter:
    path, _, leaf = name.rpartition(".")
    try:
        slots = model.get_submodule(path)._parameters
    except AttributeError:
        slots = {}
    if slots.get(leaf, value) is not None:
        raise WriteBackError(
            "the smaller program has a parameter for which the module has no place",
            at=name,
            so="the module cannot compute the same; nothing was changed",
            fix="prune with compensate=False, or stay with the smaller program (`pruned.module()`)",
        )
    like = next((p for p in slots.values() if p is not None), value)
    return nn.Parameter(value.detach().to(device=like.device, dtype=like.dtype, copy=True), requires_grad=like.requires_grad)


def _unsaved_buffers(model: nn.Module, changes: Changes, cut: Cut) -> dict[str, list[list[int] | None]]:
    """Kept positions per dim of the cut buffers that no state dict holds."""
    saved = set(model.state_dict())
    names = {str(n.target): n.name for n in cut.analysis.program.graph_module.graph.nodes if n.op == "get_attr"}
    found: dict[str, list[list[int] | None]] = {}
    for name, buffer in model.named_buffers(remove_duplicate=False):
        if name in saved or id(buffer) not in changes.tensors or name not in names:
            continue
        kept = [positions(axis, cut.units) for axis in cut.analysis.axes[names[name]]]
        found[name] = [None if index is None else index.tolist() for index in kept]
    return found

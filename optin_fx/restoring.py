"""`restore`: a pruned eager module again, from a dense one of the same architecture, a plan and a state dict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from optin_fx.attributes import from_memory_order, in_memory_order, storage_key
from optin_fx.errors import WriteBackError
from optin_fx.plan import Plan
from optin_fx.program import trace
from optin_fx.writeback import RECORD, commit, prepare
from optin_fx.writeback_trial import Changes, named_tensors


def restore(
    fresh_model: nn.Module,
    plan: Plan,
    state_dict: Mapping[str, Any],
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    dynamic_shapes: Any = None,
) -> nn.Module:
    """A pruned module: the attributes of a dense one follow the plan, and its weights are those of the state dict.

    Args:
        fresh_model: a dense model of the same architecture, whose weights are of no account; changed in place and returned.
        plan: `WriteBack.plan`, which carries all that is needed; or the plan of the search, together with example inputs.
        state_dict: of the module that was written back.
        args, kwargs, dynamic_shapes: as they were given to `trace`; only for a plan without the record of a write-back.

    Raises:
        WriteBackError: the model, the plan and the state dict do not belong together; the model is as it was.
    """
    record = plan.provenance.get(RECORD)
    if record is None:
        if not args and not kwargs:
            raise WriteBackError(
                "the plan does not say which attributes of the module follow it",
                so="the module cannot be restored without tracing it",
                fix="save the plan that apply_to returns (`back.plan`), or pass the args and kwargs that the model was traced with",
            )
        record = prepare(fresh_model, trace(fresh_model, args, kwargs, dynamic_shapes), plan)[1].plan.provenance[RECORD]
    ledger = commit(fresh_model, _changes(fresh_model, record, state_dict))
    try:
        fresh_model.load_state_dict(state_dict, strict=False)
    except BaseException:
        ledger.undo()
        raise
    return fresh_model


def _changes(model: nn.Module, record: Mapping[str, Any], state_dict: Mapping[str, Any]) -> Changes:
    """What a record and the shapes in a state dict make of a dense model."""
    own, changes = named_tensors(model), Changes()
    modules = dict(model.named_modules())
    for dotted, (old, new) in record["attributes"].items():
        path, _, name = dotted.rpartition(".")
        found = vars(modules[path]).get(name) if path in modules else None
        if found != old:
            raise _foreign(dotted, f"is {found} in the model, was {old} when the plan was made")
        changes.attributes[path, name] = new
    ties: dict[Any, list[torch.Tensor]] = {}
    for tensor in own.values():
        ties.setdefault(storage_key(tensor), []).append(tensor)
    given = set()
    for name, value in state_dict.items():
        if not isinstance(value, torch.Tensor):
            continue
        if name not in own:
            path, _, leaf = name.rpartition(".")
            slots = modules[path]._parameters if path in modules else {}
            if leaf not in slots:
                raise _foreign(name, "is in the state dict, not in the model")
            like = next((p for p in slots.values() if p is not None), value)
            empty = torch.empty_like(value, device=like.device, dtype=like.dtype)
            changes.added[name] = nn.Parameter(empty, requires_grad=like.requires_grad)
            continue
        dense = own[name]
        if dense.dim() != value.dim() or any(small > large for small, large in zip(value.shape, dense.shape, strict=True)):
            raise _foreign(name, f"is {list(value.shape)} in the state dict, {list(dense.shape)} in the dense model")
        given.add(storage_key(dense))
        # new memory even where the shape stays: if loading fails half-way, the old values are still there
        fresh = in_memory_order(dense.detach().new_empty(value.shape), dense)
        for tensor in ties[storage_key(dense)]:
            changes.tensors[id(tensor)] = from_memory_order(fresh, tensor)
    for name in model.state_dict():
        # files without ties hold a tied tensor under one of its names only
        if name in own and storage_key(own[name]) not in given:
            raise _foreign(name, "is in the model, not in the state dict")
    for name, kept in record["buffers"].items():
        if name not in own:
            raise _foreign(name, "is a buffer of the plan, not of the model")
        value = own[name].detach()
        for dim, index in enumerate(kept):
            value = value if index is None else value.index_select(dim, torch.tensor(index, device=value.device))
        changes.tensors[id(own[name])] = value.contiguous()
    return changes


def _foreign(name: str, how: str) -> WriteBackError:
    return WriteBackError(
        "the model, the plan and the state dict do not belong together",
        at=f"{name} {how}",
        so="nothing was changed",
        fix="build the model as it was before pruning, and use the plan and the state dict of one write-back",
    )

"""A program and its data on the device where a pass is to run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils import _pytree as pytree

from optin_fx.data import Batch
from optin_fx.interpreter import device_of
from optin_fx.program import Program


def placed(program: Program, batches: Sequence[Batch], device: torch.device | None) -> tuple[Program, list[Batch]]:
    """The program and the batches on a device; themselves if they are there or none is asked for. Copies are kept with the program."""
    if device is None or device_of(program) == device:
        return program, list(batches)
    kept = program.__dict__.setdefault("_placed", {})
    if device not in kept:
        kept[device] = moved(program, device)
    return kept[device], [Batch(*to_device((batch.args, dict(batch.kwargs), batch.labels), device)) for batch in batches]


def moved(program: Program, device: torch.device) -> Program:
    """A copy of a program on another device; its graph, and so its groups and fingerprint, are the same."""
    import copy

    from torch.export.passes import move_to_device_pass

    exported = move_to_device_pass(copy.deepcopy(program.exported), device)
    args, kwargs = to_device((program.args, program.kwargs), device)
    return Program(exported, args, kwargs, provenance=program.provenance)


def to_device(tree: Any, device: torch.device) -> Any:
    """A tree of tensors on a device."""
    return pytree.tree_map_only(torch.Tensor, lambda tensor: tensor.to(device), tree)

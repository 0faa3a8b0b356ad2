"""A program and its data on the device where a pass is to run."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils import _pytree as pytree

from optin_fx.data import Batch
from optin_fx.execution import current
from optin_fx.interpreter import device_of
from optin_fx.offload import InMemory, away, each_once, on_disk, store_of, transplanted
from optin_fx.program import Program


def placed(program: Program, batches: Sequence[Batch]) -> tuple[Program, list[Batch]]:
    """The program and the batches where `execution` says that passes run."""
    settings = current()
    device = settings.device or device_of(program)
    if store_of(program) is not None or (device_of(program) == device and not settings.offload):
        return program, list(batches)
    copy_ = _offloaded(program, device) if settings.offload else moved(program, device)
    return copy_, [Batch(*to_device((batch.args, dict(batch.kwargs), batch.labels), device)) for batch in batches]


def _offloaded(program: Program, device: torch.device) -> Program:
    if device.type != "cpu":
        return away(program, InMemory(program.tensors), device)
    folder = Path(tempfile.mkdtemp(prefix="optin-fx-"))
    try:
        made = on_disk(program, folder / "weights.safetensors")
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    weakref.finalize(made, shutil.rmtree, folder, ignore_errors=True)  # removed with the program
    return made


def moved(program: Program, device: torch.device) -> Program:
    """A copy of a program on another device; its graph, and so its groups and fingerprint, are the same."""
    return transplanted(program, each_once(program.tensors, lambda _, tensor: tensor.to(device, copy=True)), device)


def to_device(tree: Any, device: torch.device) -> Any:
    """A tree of tensors on a device."""
    return pytree.tree_map_only(torch.Tensor, lambda tensor: tensor.to(device), tree)

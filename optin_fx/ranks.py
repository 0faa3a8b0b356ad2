"""Several processes as one: who this process is, sums over all of them, and whether they agree.

Started by `torchrun -m optin_fx score ...` (gloo on CPUs, NCCL on GPUs), or by whoever sets up `torch.distributed`. A single process is
rank 0 of 1, and nothing here then communicates.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist

from optin_fx.errors import DistributedError


def rank() -> int:
    """This process's number, from 0."""
    return dist.get_rank() if _several() else 0


def count() -> int:
    """How many processes work together."""
    return dist.get_world_size() if _several() else 1


@contextmanager
def joined() -> Iterator[None]:
    """Join the processes that torchrun started, for the time of the block; does nothing without torchrun."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or _several():
        yield
        return
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def add_up(sums: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Sums over all processes of float64 tensors, of which every process has the same names and shapes."""
    if not _several() or not sums:
        return dict(sums)
    names = sorted(sums)
    flat = torch.cat([sums[name].flatten() for name in names])
    if dist.get_backend() == "nccl":
        flat = flat.cuda()
    dist.all_reduce(flat)
    parts = flat.cpu().split([sums[name].numel() for name in names])
    return {name: part.reshape(sums[name].shape) for name, part in zip(names, parts, strict=True)}


def gathered(value: Any) -> list[Any]:
    """The value of every process, in the order of their ranks."""
    if not _several():
        return [value]
    found: list[Any] = [None] * count()
    dist.all_gather_object(found, value)
    return found


def refuse_disagreement(facts: Mapping[str, str]) -> None:
    """All processes must have started from the same things.

    Args:
        facts: what is compared, for instance `{"weights": "3f2a..."}`, by name.

    Raises:
        DistributedError: in every process, naming the first thing that differs.
    """
    everyone = gathered(dict(facts))
    for name in facts:
        found = [theirs.get(name) for theirs in everyone]
        if len(set(found)) > 1:
            raise DistributedError(
                f"the processes disagree about the {name}",
                at=", ".join(f"rank {number}: {value}" for number, value in enumerate(found)),
                so="their parts cannot be added up",
                fix=f"give every process the same {name}; seed factories that make random ones",
            )


def _several() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1

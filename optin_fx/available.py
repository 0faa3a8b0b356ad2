"""How much memory there is for what a loop wants to keep."""

from __future__ import annotations

import os

import torch

from optin_fx.attributes import unique_storages
from optin_fx.execution import current
from optin_fx.interpreter import device_of
from optin_fx.program import Program


def bytes_to_use(device: torch.device) -> int:
    """The memory limit that was set, else half of what is free on the device now."""
    limit = current().memory_limit
    if limit is not None:
        return limit
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0] // 2)
    return _free_on_host() // 2


def bytes_beside(program: Program, share: float, least: int) -> int:
    """What a loop may take so that it stays small beside the model: the memory limit that was set, else a share of the weights' own memory.

    Args:
        least: it may take so much however small the model is, if that is free.
    """
    free = bytes_to_use(device_of(program))
    if current().memory_limit is not None:
        return free
    weights = sum(tensor.numel() * tensor.element_size() for tensor in unique_storages(program.tensors.values()))
    return min(free, max(int(share * weights), least))


def _free_on_host() -> int:
    try:
        with open("/proc/meminfo") as file:
            found = next(line for line in file if line.startswith("MemAvailable:"))
        return int(found.split()[1]) * 1024
    except (OSError, StopIteration, ValueError):  # not Linux
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2

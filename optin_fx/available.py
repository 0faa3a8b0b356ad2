"""How much memory there is for what a loop wants to keep."""

from __future__ import annotations

import os

import torch

from optin_fx.execution import current


def bytes_to_use(device: torch.device) -> int:
    """The memory limit that was set, else half of what is free on the device now."""
    limit = current().memory_limit
    if limit is not None:
        return limit
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0] // 2)
    return _free_on_host() // 2


def _free_on_host() -> int:
    try:
        with open("/proc/meminfo") as file:
            found = next(line for line in file if line.startswith("MemAvailable:"))
        return int(found.split()[1]) * 1024
    except (OSError, StopIteration, ValueError):  # not Linux
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2

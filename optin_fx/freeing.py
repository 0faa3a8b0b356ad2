"""Memory that is not used any more goes back to the system."""

from __future__ import annotations

import ctypes
import gc

LARGE = 32 << 20
"""Bytes of results from which on a step of a loop is worth cleaning up after."""


def give_back(*, graphs: bool = False) -> None:
    """Return memory that was freed to the system, where the C library keeps it (glibc does).

    Large tensors of many sizes that come and go leave holes: without this, scoring MiniLM held 900 MB at the end, and used 130 MB.

    Args:
        graphs: free graph modules first that nobody holds any more; they are cycles, and wait for the garbage collector with their weights.
    """
    if graphs:
        gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, AttributeError):
        return  # another C library

"""Memory that is not used any more goes back to the system."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

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


def empty(module: nn.Module, source: nn.Module) -> None:
    """Let go of the tensors of a module that nobody will run again.

    Parts that it shares with the one that it was made from (branches of a `torch.cond`) are left alone.

    Graph modules are cycles, and would hold their weights until the garbage collector comes. To call it takes a second where programs have
    been traced, for those are many objects.
    """
    shared = set(source.modules())
    for part in set(module.modules()) - shared:
        part._parameters.clear()
        part._buffers.clear()


_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Names of settings in glibc's malloc.h."""


@contextmanager
def without_holes() -> Iterator[None]:
    """While this lasts, what is larger than 1 MiB comes straight from the system, and is given back when it is freed (glibc).

    Otherwise glibc soon serves tensors of up to 32 MiB from its heap, where those that are freed leave holes between others: scoring MiniLM
    then takes 650 MB at its peak, not 450. Pages that are fresh each time cost up to a third of the time. Afterwards the settings are those
    that glibc comes to by itself.
    """
    _set_malloc(mmap=1 << 20, trim=1 << 17)
    try:
        yield
    finally:
        _set_malloc(mmap=32 << 20, trim=64 << 20)


def _set_malloc(*, mmap: int, trim: int) -> None:
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return  # another C library
    mallopt(_MMAP_THRESHOLD, mmap)
    mallopt(_TRIM_THRESHOLD, trim)

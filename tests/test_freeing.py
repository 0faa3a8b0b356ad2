"""Memory that is freed goes back to the system, where the C library can be told so."""

from __future__ import annotations

import platform
import subprocess
import sys
import textwrap

import pytest
from torch import nn

from optin_fx.freeing import empty

HOLES = """
    import torch
    from optin_fx.freeing import without_holes

    def held():
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * 4096

    def left_behind():
        before = held()
        tensors = [torch.ones(1 << 20) for _ in range(60)]  # 4 MB each
        kept = tensors[::2]
        del tensors
        return held() - before

    for _ in range(3):
        torch.ones(7 << 20)  # 28 MB: from now on glibc keeps tensors of this size
    with without_holes():
        print(left_behind())
    print(left_behind())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_holes_between_tensors_go_back_to_the_system() -> None:
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(HOLES)], capture_output=True, text=True, check=True)
    inside, outside = map(int, done.stdout.split())
    half = 30 * 4 << 20
    assert inside < 1.15 * half
    assert outside > 1.2 * half  # so there was something to do


def test_what_is_shared_with_its_source_stays() -> None:
    inner, source, made = nn.Linear(2, 2), nn.Module(), nn.Module()
    source.branch = made.branch = inner
    made.own = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    empty(made, source)
    assert [name for name, _ in made.named_parameters()] == ["branch.weight", "branch.bias"]
    assert not list(made.buffers())

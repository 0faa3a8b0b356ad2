"""Random modules, random plans: what is sliced equals what is masked.

`OPTIN_FX_GRAPHS=2000 pytest tests/test_random_graphs.py` tries more of them; `OPTIN_FX_GRAPH=17` tries that one alone.
"""

from __future__ import annotations

import os
import random

import pytest
import torch
from random_graphs import RandomNet

from optin_fx.groups import group
from optin_fx.plan import random_plan
from optin_fx.program import trace
from optin_fx.verifying import verify

COUNT = int(os.environ.get("OPTIN_FX_GRAPHS", "500"))
PIECES = 10
ONLY = os.environ.get("OPTIN_FX_GRAPH")


def net_of(seed: int) -> RandomNet:
    torch.manual_seed(seed)
    draw = random.Random(seed)
    return RandomNet(draw.randint, draw.randint(2, 9))


def check(seed: int) -> int:
    """Returns the number of groups that could shrink."""
    net = net_of(seed)
    program = trace(net, (net.example,))
    free = len(group(program).free)
    for plan_seed, keep in ((0, 0.5), (1, 0.3)):
        plan = random_plan(program, keep, plan_seed)
        found = verify(program, plan)
        assert found.equal, f"seed {seed}, plan {plan_seed}: {found}\n{net}\n{plan}"
    return free


@pytest.mark.parametrize("piece", range(PIECES))
def test_sliced_equals_masked(piece: int) -> None:
    free = 0
    for seed in [int(ONLY)] if ONLY else range(piece, COUNT, PIECES):
        try:
            free += check(seed)
        except Exception as error:
            error.add_note(f"random graph {seed}: OPTIN_FX_GRAPH={seed} tries it alone\n{net_of(seed)}")
            raise
    assert free > 0, "no graph had a group that could shrink, so nothing was tested"

"""The oracle: for any plan, the physically smaller program equals the masked one. Seven models, 20 random plans each.

`verify` compares the two graphs as they are edited; a few plans go all the way through `rewrite` and `mask` (traced again), another
batch size, a file, and ONNX Runtime.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils import _pytree as pytree

import optin_fx as ofx
from optin_fx.lowering import lower
from optin_fx.program import Program
from optin_fx.testing import published
from optin_fx.verifying import agreement

PLANS = 20
FLOAT32, FLOAT64, ENGINE = 1e-4, 1e-9, 1e-3
SLOW = ("efficientnet_lite0", "resnet50")  # deep graphs, which are long in tracing: one plan goes all the way
KEEP = (0.5, 0.8, 0.25)  # expected share of units to keep, in turn

models = pytest.mark.parametrize("name", published.MODELS)


def plan_of(program: Program, seed: int) -> ofx.Plan:
    return ofx.random_plan(program, keep=KEEP[seed % len(KEEP)], seed=seed)


def check_plans(program: Program, tolerance: float) -> None:
    assert len(ofx.group(program).free) > 5
    for seed in range(PLANS):
        found = ofx.verify(program, plan_of(program, seed))
        assert found.max_rel <= tolerance, f"plan {seed}: {found}"
        assert found.moved > 1e-3, f"plan {seed} changed next to nothing, so the comparison says nothing"


@models
def test_sliced_equals_masked_in_double(name: str) -> None:
    check_plans(published.program(name, brief=True, dtype=torch.float64), FLOAT64)


@models
def test_the_whole_way(name: str, tmp_path: Path) -> None:
    program = published.program(name, brief=True)
    check_plans(program, FLOAT32)
    args, kwargs = more_rows(program.args), more_rows(program.kwargs)
    for seed in (1,) if name in SLOW else (1, 2):
        plan = plan_of(program, seed)
        small, zeroed = ofx.rewrite(program, plan), ofx.mask(program, plan)
        assert ofx.cost(small).macs == ofx.cost(program, plan).macs
        assert ofx.cost(small).params == ofx.cost(program, plan).params == counted(small)
        expected = zeroed(*args, **kwargs)
        assert agreement(small(*args, **kwargs), expected).max_rel <= FLOAT32
        loaded = ofx.load(small.save(tmp_path / f"{seed}.pt2"))
        assert agreement(loaded(*args, **kwargs), expected).max_rel <= FLOAT32
        assert loaded.fingerprint == small.fingerprint
        assert loaded.input_names == small.input_names == program.input_names
        if seed == 1:
            engine = lower(loaded, "onnxruntime:cpu")
            assert agreement(engine(*args, **kwargs), expected).max_rel <= ENGINE


def more_rows(inputs: Any) -> Any:
    """Three rows in place of two: no size of the examples may have been written into the graph."""
    return pytree.tree_map_only(torch.Tensor, lambda t: torch.cat([t, t[:1].roll(1, -1)]), inputs)


def counted(program: Program) -> int:
    return sum(p.numel() for p in program.module().parameters())

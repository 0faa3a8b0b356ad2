"""Tracing again: dynamic dims, their limits and the way a model is called survive."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

import optin_fx as ofx
from optin_fx.retrace import dynamic_shapes_of


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        y = self.down(self.up(x).relu())
        return y if other is None else y + other


def shapes(program: ofx.Program) -> Any:
    return dynamic_shapes_of(program.exported, program.args, program.kwargs)


def test_static_stays_static() -> None:
    program = ofx.trace(Net(), (torch.randn(3, 4),), dynamic_shapes={})
    assert shapes(program) is None
    assert shapes(ofx.rewrite(program, ofx.random_plan(program, 0.3))) is None


def test_limits_survive() -> None:
    program = ofx.trace(Net(), (torch.randn(5, 4),), dynamic_shapes={"x": {0: Dim("rows", min=4, max=9)}})
    small = ofx.rewrite(program, ofx.random_plan(program, 0.3))
    (limits,) = small.exported.range_constraints.values()
    assert (int(limits.lower), int(limits.upper)) == (4, 9)
    assert small(torch.randn(9, 4)).shape == (9, 2)
    with pytest.raises(AssertionError, match="<= 9"):  # torch's own guard
        small.exported.module()(torch.randn(10, 4))


def test_equal_dims_stay_equal() -> None:
    rows = Dim("rows")
    program = ofx.trace(Net(), (torch.randn(5, 4),), {"other": torch.randn(5, 2)}, {"x": {0: rows}, "other": {0: rows}})
    small = ofx.rewrite(program, ofx.random_plan(program, 0.3))
    found = shapes(small)
    assert list(found) == ["x", "other"]
    assert found["x"][0] is found["other"][0]
    assert small(torch.randn(7, 4), other=torch.randn(7, 2)).shape == (7, 2)


def test_examples_are_the_users_own() -> None:
    """Tracing may double a batch of one; costs are counted at the sizes that the user gave."""
    x = torch.randn(1, 4)
    program = ofx.trace(Net(), (x,))
    small = ofx.rewrite(program, ofx.random_plan(program, 0.3))
    assert small.args[0] is x
    assert small(torch.randn(6, 4)).shape == (6, 2)
    assert ofx.cost(small).macs == ofx.cost(program, ofx.random_plan(program, 0.3)).macs


def test_provenance_names_the_plan() -> None:
    program = ofx.trace(Net(), (torch.randn(2, 4),))
    plan = ofx.random_plan(program, 0.3, seed=4)
    assert ofx.rewrite(program, plan).provenance == {"plan": program.fingerprint, "search": "random{keep=0.3, seed=4}"}
    assert "mask" in ofx.mask(program, plan).provenance

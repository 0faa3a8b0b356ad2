"""Costs: torch's own counter agrees, and what a plan will cost is what the smaller program costs."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import optin_fx as ofx
from optin_fx.costs import cost_model
from optin_fx.polynomial import Polynomial
from optin_fx.program import Program
from optin_fx.testing import published


@pytest.mark.parametrize("name", ["deit_tiny", "efficientnet_lite0", "llama", "minilm", "swin_tiny"])
def test_torch_counts_the_same(name: str) -> None:
    program = published.program(name, brief=True)
    plan = ofx.random_plan(program, keep=0.5, seed=1)
    for found, module in ((ofx.cost(program), program), (ofx.cost(program, plan), ofx.rewrite(program, plan))):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            module.module()(*program.args, **program.kwargs)
        assert found.flops == counter.get_total_flops()
        assert found.params == sum(p.numel() for p in {id(p): p for p in module.module().parameters()}.values())


@pytest.fixture(scope="module")
def program() -> Program:
    return ofx.trace(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2)), (torch.randn(3, 4),))


def test_exact_polynomials(program: Program) -> None:
    model = cost_model(program)
    assert model.dense == {"0:neuron": 6, "2:neuron": 5}
    a, b = "0:neuron", "2:neuron"
    assert model.macs.monomials == {(a,): 12.0, (a, b): 3.0, (b,): 6.0}
    assert model.params.monomials == {(a,): 5.0, (a, b): 1.0, (b,): 3.0, (): 2.0}
    assert model.bytes({a: 6, b: 5}) == 4 * model.params({a: 6, b: 5})
    assert model.macs.derivative(a, {a: 6, b: 5}) == 12 + 3 * 5
    assert [polynomial({a: 6, b: 5}) for polynomial in model.by_node.values()] == [72.0, 90.0, 30.0]


def test_a_plan_or_counts(program: Program) -> None:
    model = cost_model(program)
    plan = ofx.make_plan(program, {"0:neuron": [1, 3]})
    assert model.cost(plan) == model.cost({"0:neuron": 2}) == model.cost({"0:neuron": [1, 3]}) == ofx.cost(program, plan)
    assert ofx.cost(program, plan).macs == 24 + 30 + 30
    assert str(ofx.cost(program)) == "0.000 GFLOPs (0.000 GMACs), 0.000 M parameters, 0.00 MB"


def test_powers() -> None:
    square = Polynomial({("h", "h"): 2.0, ("h",): 1.0})
    assert square({"h": 3.0}) == 21.0
    assert square.derivative("h", {"h": 3.0}) == 13.0
    assert (square * square)({"h": 3.0}) == 441.0
    assert (square + Polynomial({(): 1.0}))({"h": 3.0}) == 22.0

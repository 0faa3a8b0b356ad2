"""Closed-form reconstruction: exact where it can be, never worse on held-out data, errors accounted for."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import optin_fx as ofx
from optin_fx.data import batches_of
from optin_fx.moments import Moments, offset_only, ridge
from optin_fx.reconstruction import Options, reconstruct
from optin_fx.verifying import agreement


def test_ridge_is_the_normal_equations() -> None:
    torch.manual_seed(0)
    x, w = torch.randn(400, 6, dtype=torch.float64), torch.randn(3, 6, dtype=torch.float64)
    y = x @ w.T + 2.0 + 0.1 * torch.randn(400, 3, dtype=torch.float64)
    moments = Moments(6, 3)
    moments.add(x[:150], y[:150])
    moments.add(x[150:], y[150:])
    prior = torch.zeros(3, 6, dtype=torch.float64)
    solved = ridge(moments, prior, 0.0)
    design = torch.cat([x, torch.ones(400, 1, dtype=torch.float64)], 1)
    expected = torch.linalg.lstsq(design, y).solution
    assert torch.allclose(solved.weight.T, expected[:-1], atol=1e-8)
    assert torch.allclose(solved.bias, expected[-1], atol=1e-8)
    error = (y - x @ solved.weight.T - solved.bias).square().sum(1).mean()
    assert moments.residual(solved.weight, solved.bias) == pytest.approx(float(error))
    assert torch.allclose(ridge(moments, w, 1e9).weight, w, atol=1e-6)  # a strong ridge keeps the old weights
    shifted = offset_only(moments, w)
    assert torch.allclose(shifted.bias, (y - x @ w.T).mean(0))


class Redundant(nn.Module):
    """Two layers whose hidden units come in equal pairs, so that half of them can go for free."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        make = {
            "linear": lambda i, o: nn.Linear(i, o),
            "linear without bias": lambda i, o: nn.Linear(i, o, bias=False),
            "conv": lambda i, o: nn.Conv2d(i, o, 3, padding=1, stride=2),
            "conv1d": lambda i, o: nn.Conv1d(i, o, 3, padding=1),
            "pointwise": lambda i, o: nn.Conv2d(i, o, 1),
        }[kind]
        self.one, self.two = make(6, 12), make(12, 5)
        with torch.no_grad():
            self.one.weight[6:] = self.one.weight[:6]
            if self.one.bias is not None:
                self.one.bias[6:] = self.one.bias[:6]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.two(self.one(x).relu())


SHAPES = {"linear": (6,), "linear without bias": (6,), "conv": (6, 9, 9), "conv1d": (6, 20), "pointwise": (6, 5, 5)}


@pytest.mark.parametrize("kind", list(SHAPES))
@pytest.mark.parametrize("sequential", [True, False])
def test_redundant_units_are_made_up_for(kind: str, sequential: bool) -> None:
    model = Redundant(kind)
    data = [torch.randn(32, *SHAPES[kind]) for _ in range(8)]
    program = ofx.trace(model, (data[0],))
    plan = ofx.make_plan(program, {ofx.group(program).free[0].name: range(6)})
    module, report = reconstruct(
        program, plan, batches_of(program, data, needed_for="test"), Options(sequential=sequential, ratios=(1e-9, 1e-3))
    )
    fresh = torch.randn(16, *SHAPES[kind])
    with torch.no_grad():
        assert agreement(module(fresh), program(fresh)).max_rel < 1e-3
        assert agreement(ofx.rewrite(program, plan)(fresh), program(fresh)).max_rel > 0.05  # slicing alone is far off
    assert [item.level for item in report] == ["affine"]


def test_a_bias_is_added_where_there_is_none() -> None:
    """Units that are constant are folded into a new bias."""

    class Constant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.one, self.two = nn.Linear(6, 8), nn.Linear(8, 4, bias=False)
            with torch.no_grad():
                self.one.weight[4:] = 0.0
                self.one.bias[4:] = 3.0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.two(self.one(x).relu())

    data = [torch.randn(64, 6) for _ in range(4)]
    result = ofx.prune(Constant(), (data[0],), data=data, score="magnitude", budget="flops <= 100%", min_keep=0.1)
    program = result.dense
    plan = ofx.make_plan(program, {ofx.group(program).free[0].name: range(4)})
    module, _ = reconstruct(program, plan, batches_of(program, data, needed_for="test"), Options(level="bias"))
    assert "two.bias" in dict(module.named_parameters())
    assert agreement(module(data[0]).detach(), program(data[0])).max_rel < 1e-5


def test_sequential_refit_beats_none_on_held_out_data() -> None:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for _ in range(3):
        layers += [nn.Linear(24, 96), nn.GELU(), nn.Linear(96, 24), nn.LayerNorm(24)]
    model = nn.Sequential(*layers)
    data = [torch.randn(64, 24) for _ in range(12)]
    program = ofx.trace(model, (data[0],))
    plan = ofx.search(program, ofx.score(program, "magnitude"), "flops <= 60%")
    batches = batches_of(program, data[:8], needed_for="test")
    errors = {}
    for level in ("none", "bias", "affine"):
        module, _ = reconstruct(program, plan, batches, Options(level=level))
        with torch.no_grad():
            errors[level] = sum(float((module(x) - program(x)).square().mean()) for x in data[8:])
    assert errors["affine"] < 0.8 * errors["none"]
    assert errors["bias"] <= errors["none"] * 1.01


def test_shared_weights_are_left_alone_and_said_so() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.one, self.two = nn.Linear(8, 16), nn.Linear(16, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.two(self.one(self.two(self.one(x).relu())).relu())

    data = [torch.randn(32, 8) for _ in range(4)]
    program = ofx.trace(Shared(), (data[0],))
    plan = ofx.random_plan(program, 0.5, seed=1)
    module, report = reconstruct(program, plan, batches_of(program, data, needed_for="test"))
    assert {item.note for item in report} == {"its weight has other users"}
    with torch.no_grad():
        assert agreement(module(data[0]), ofx.rewrite(program, plan)(data[0])).equal

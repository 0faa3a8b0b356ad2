"""The knapsack search: exact where costs add up, bounded, several limits, steps; and budgets of every kind and search on random models."""

from __future__ import annotations

from itertools import pairwise, product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import optin_fx as ofx
from optin_fx.costs import cost_model
from optin_fx.multiple_choice import Items, choose
from optin_fx.scores import Scores
from optin_fx.testing import published


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), groups=st.integers(1, 4), limits=st.integers(1, 2), share=st.floats(0.05, 1))
def test_the_best_of_all_selections(seed: int, groups: int, limits: int, share: float) -> None:
    """Values that rise in any way and costs with steps: no convexity is assumed."""
    random = np.random.default_rng(seed)
    made = []
    for _ in range(groups):
        size = int(random.integers(1, 6))
        costs = np.cumsum(random.integers(0, 3, (limits, size)) * random.uniform(0.5, 2, (limits, size)), axis=1)
        made.append(Items(np.cumsum(random.exponential(size=size)), costs))
    least, most = (sum(g.costs[:, i] for g in made) for i in (0, -1))
    allowed = least + share * (most - least)
    found = choose(made, allowed, 0.0)
    assert found is not None
    all_of_them = product(*(range(len(g.values)) for g in made))
    sums = [
        sum(g.values[t] for g, t in zip(made, taken, strict=True))
        for taken in all_of_them
        if (sum(g.costs[:, t] for g, t in zip(made, taken, strict=True)) <= allowed + 1e-9).all()
    ]
    assert found.value == pytest.approx(max(sums))
    assert found.bound >= max(sums) - 1e-9


def test_limits_that_nothing_meets() -> None:
    assert choose([Items(np.array([1.0]), np.array([[2.0]]))], np.array([1.0])) is None


def test_optimal_on_a_transformer_and_says_so() -> None:
    program = published.program("minilm", brief=True)
    scores = ofx.score(program, "random")
    values = {}
    for method in ("knapsack", "rank", "kwon"):
        plan = ofx.search(program, scores, "flops <= 55% and params <= 90%", method, kinds=("head", "neuron"))
        assert ofx.cost(program, plan).flops <= 0.55 * ofx.cost(program).flops
        values[method] = sum(float(v[list(plan.kept[n])].sum()) if n in plan.kept else float(v.sum()) for n, v in scores.values.items())
        if method == "knapsack":
            assert 0 <= plan.provenance["gap"] <= 1e-6
    assert values["knapsack"] >= max(values.values()) - 1e-9


class Chain(nn.Module):
    """Convolutions in a row, so that costs are products; a residual; a linear head."""

    def __init__(self, widths: list[int]) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, widths[0], 3, padding=1)
        self.layers = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in pairwise(widths))
        self.back = nn.Conv2d(widths[-1], widths[0], 1)
        self.head = nn.Linear(widths[0], 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = y = self.stem(x).relu()
        for layer in self.layers:
            y = layer(y).relu()
        return self.head((x + self.back(y)).mean((2, 3)))


@settings(max_examples=25, deadline=None)
@given(
    widths=st.lists(st.integers(24, 64), min_size=2, max_size=4),
    method=st.sampled_from(["rank", "kwon", "knapsack"]),
    metric=st.sampled_from(["flops", "macs", "params", "bytes", "memory", "flops(layers)"]),
    share=st.floats(35, 95),
    align=st.sampled_from([1, 1, 1, 4]),
    seed=st.integers(0, 99),
)
def test_a_budget_is_met_and_spent(widths: list[int], method: str, metric: str, share: float, align: int, seed: int) -> None:
    """cost(rewrite(plan)) is within the budget, and within one percent of it unless alignment or one step is larger than that."""
    torch.manual_seed(seed)
    program = ofx.trace(Chain(widths), (torch.randn(2, 3, 8, 8),))
    scores = Scores({g.name: torch.rand(g.extent) ** 3 for g in ofx.group(program).free}, "made-up", program.fingerprint)
    plan = ofx.search(program, scores, f"{metric} <= {share}%", method, align=align)
    name, _, part = metric.removesuffix(")").partition("(")
    measure, small = cost_model(program).measure(name, part), ofx.rewrite(program, plan)
    limit = share / 100 * measure(cost_model(program).extents())
    cost = cost_model(small).measure(name, part)(cost_model(small).extents())
    assert cost <= limit * (1 + 1e-9)
    assert cost == pytest.approx(measure(cost_model(program).extents(plan)), rel=1e-9 if name != "memory" else 0.05)
    if align == 1:
        extents = cost_model(program).extents(plan)
        free = [g.name for g in ofx.group(program).free if extents[g.name] < g.extent]
        steps = [measure({**extents, n: extents[n] + 1}) - cost for n in free]
        assert not free or limit - cost <= max(0.01 * limit, min(steps))

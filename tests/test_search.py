"""Search: budgets are met exactly, left nothing unspent, and refused when they cannot be met."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import optin_fx as ofx
from optin_fx.budget import parse_budget
from optin_fx.costs import cost_model
from optin_fx.errors import BudgetError, ScoreError
from optin_fx.scores import Scores


class Net(nn.Module):
    """Convolutions with a residual, a grouped one, and a head: costs that are products of extents."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 24, 3, padding=1)
        self.a, self.b = nn.Conv2d(24, 40, 1), nn.Conv2d(40, 24, 3, padding=1)
        self.grouped = nn.Conv2d(24, 36, 3, padding=1, groups=6)
        self.head = nn.Linear(36, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x).relu()
        x = x + self.b(self.a(x).relu())
        return self.head(self.grouped(x).relu().mean((2, 3)))


@pytest.fixture(scope="module")
def program() -> ofx.Program:
    torch.manual_seed(0)
    return ofx.trace(Net(), (torch.randn(2, 3, 8, 8),))


@settings(max_examples=40, deadline=None)
@given(
    metric=st.sampled_from(["flops", "params", "bytes", "macs"]), share=st.floats(25, 100), seed=st.integers(0, 99), additive=st.booleans()
)
def test_a_budget_is_met_and_spent(program: ofx.Program, metric: str, share: float, seed: int, additive: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    values = {g.name: torch.rand(g.extent, generator=generator) ** 3 for g in ofx.group(program).free}
    scores = Scores(values, "made-up", program.fingerprint, additive)
    plan = ofx.search(program, scores, f"{metric} <= {share}%")
    small, dense = ofx.cost(program, plan), ofx.cost(program)
    limit = getattr(dense, metric) * share / 100
    assert getattr(small, metric) <= limit * (1 + 1e-9)
    model = cost_model(program)
    for name, units in plan.kept.items():  # no single unit more would have fitted
        more = {**plan.kept, name: (*units, -1)}
        assert getattr(model.cost(more), metric) > limit * (1 - 1e-9)


def test_the_cost_is_that_of_the_rewritten_program(program: ofx.Program) -> None:
    plan = ofx.search(program, ofx.score(program, "magnitude"), "flops <= 45%")
    assert ofx.cost(ofx.rewrite(program, plan)) == ofx.cost(program, plan)
    assert plan.predicted["flops"] == ofx.cost(program, plan).flops


def test_the_best_units_stay(program: ofx.Program) -> None:
    scores = ofx.score(program, "magnitude")
    plan = ofx.search(program, scores, "flops <= 50%")
    for name, units in plan.kept.items():
        best = torch.argsort(scores[name], descending=True)[: len(units)]
        assert sorted(best.tolist()) == list(units)


def test_several_limits_hold_at_once(program: ofx.Program) -> None:
    plan = ofx.search(program, ofx.score(program, "random"), "flops <= 60% and params <= 40%")
    small, dense = ofx.cost(program, plan), ofx.cost(program)
    assert small.flops <= 0.6 * dense.flops
    assert small.params <= 0.4 * dense.params


def test_alignment_freezing_and_kinds(program: ofx.Program) -> None:
    plan = ofx.search(program, ofx.score(program, "random"), "flops <= 55%", align=4, freeze=("stem*", "*residual"))
    assert all(len(units) % 4 == 0 for name, units in plan.kept.items() if ofx.group(program)[name].extent >= 16)
    assert not any("residual" in name for name in plan.kept)
    only = ofx.search(program, ofx.score(program, "random"), "flops <= 80%", kinds=("filter",))
    assert all(ofx.group(program)[name].kind == "filter" for name in only.kept)


def test_a_budget_that_cannot_be_met_says_the_least_reachable(program: ofx.Program) -> None:
    with pytest.raises(BudgetError) as caught:
        ofx.search(program, ofx.score(program, "random"), "flops <= 0.01%", min_keep=0.5)
    text = str(caught.value)
    assert text.startswith("the budget flops <= 0.01% cannot be met\n  at  least reachable: flops <= ")
    assert text.endswith("fix raise the budget, allow more kinds of units, or look at what is pinned: print(ofx.group(program))")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("half", "cannot read the budget 'half'"),
        ("flops >= 50%", "cannot read the budget 'flops >= 50%'"),
        ("watts <= 5", "cannot budget 'watts'"),
        ("flops <= 0%", "0% is not a share of the dense cost"),
        ("flops <= 120%", "120% is not a share of the dense cost"),
        ("params <= 3furlongs", "unknown unit 'furlongs'"),
        ("flops <= 1.2.3%", "cannot read the number '1.2.3'"),
    ],
)
def test_unreadable_budgets(text: str, message: str) -> None:
    with pytest.raises(BudgetError) as caught:
        parse_budget(text)
    assert str(caught.value).splitlines()[0] == message
    assert "fix" in str(caught.value)


def test_budget_texts() -> None:
    assert str(parse_budget("FLOPs <= 50% and params<=3M")) == "flops <= 50% and params <= 3e+06"
    assert parse_budget("bytes <= 20MB").limits[0].value == 20e6


def test_scores_that_are_not_finite_are_refused(program: ofx.Program) -> None:
    values = {g.name: torch.ones(g.extent) for g in ofx.group(program).free}
    name = next(iter(values))
    values[name][1] = float("nan")
    with pytest.raises(ScoreError) as caught:
        ofx.search(program, Scores(values, "made-up", program.fingerprint), "flops <= 50%")
    assert f"1 of {len(values[name])} scores of {name!r} are NaN or infinite" in str(caught.value)


def test_scores_of_another_model_are_refused(program: ofx.Program) -> None:
    values = {g.name: torch.ones(g.extent) for g in ofx.group(program).free}
    with pytest.raises(ScoreError, match="the scores belong to another model"):
        ofx.search(program, Scores(values, "made-up", "0" * 16), "flops <= 50%")


def test_balance_keeps_every_group_near_the_budgets_share(program: ofx.Program) -> None:
    values = {g.name: torch.full((g.extent,), 1e-6 if g.name == "a:filter" else 1.0) for g in ofx.group(program).free}
    scores = Scores(values, "made-up", program.fingerprint)
    free = ofx.search(program, scores, "flops <= 50%")
    even = ofx.search(program, scores, "flops <= 50%", balance=0.9)
    assert len(free.kept["a:filter"]) < 18
    assert len(even.kept["a:filter"]) >= 18  # nine tenths of the budget's half of 40 filters

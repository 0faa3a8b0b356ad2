"""Latency tables and the closed loop, on the eager target: structure, fits, cache, correction, and a budget that measurement must meet."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import optin_fx as ofx
from optin_fx import closed_loop
from optin_fx.budget import parse_budget
from optin_fx.closed_loop import search_by_latency
from optin_fx.costs import cost_model
from optin_fx.errors import BudgetError
from optin_fx.latency_table import Curve, LatencyTable, build
from optin_fx.pipeline import State, find_pass
from optin_fx.polynomial import Polynomial
from optin_fx.regions import region_of
from optin_fx.report import Ratio
from optin_fx.testing import published


def test_a_region_holds_what_grows_with_the_group() -> None:
    program = published.program("minilm", brief=True)
    model = cost_model(program)
    first = [g for g in ofx.group(program).free if g.kind in ("head", "neuron") and ".0." in g.name]
    assert {g.kind for g in first} == {"head", "neuron"}
    for g in first:
        region = region_of(program, g.name)
        own = {names: value for names, value in model.macs.monomials.items() if g.name in names}
        assert ofx.cost(region.program).macs == Polynomial(own)(model.extents())
        assert ofx.cost(region.at(g.extent // 2)).macs == Polynomial(own)(model.extents({g.name: g.extent // 2}))


def test_regions_of_equal_layers_have_one_signature() -> None:
    program = published.program("minilm", brief=True)
    found = {g.name: region_of(program, g.name).signature for g in ofx.group(program).free if g.kind in ("head", "neuron")}
    assert len(found) > 2
    assert len(set(found.values())) <= 3  # heads, neurons, and the pooler's


def test_fits() -> None:
    curve = Curve((8, 16, 24, 32), (1.0, 1.0, 2.0, 3.0), (0.0,) * 4)
    assert [curve.at(w, "linear") for w in (0, 4, 8, 20, 32)] == [0.0, 1.0, 1.0, 1.5, 3.0]
    assert [curve.at(w, "steps") for w in (1, 9, 17, 32)] == [1.0, 1.0, 2.0, 3.0]
    assert [curve.at(w, "kwon") for w in (8, 16, 24, 32)] == pytest.approx([1.0, 1.0, 2.0, 3.0])


def test_the_table_is_a_sum_and_is_corrected() -> None:
    curves = {"a": Curve((5, 10), (1.0, 2.0), (0.0, 0.0)), "b": Curve((10, 20), (2.0, 3.0), (0.0, 0.0))}
    table = LatencyTable("eager:cpu", 10.0, curves)
    assert table({"a": 10, "b": 20}) == 10.0
    assert table({"a": 5, "b": 10}) == 8.0
    assert table.derivative("a", {"a": 7, "b": 20}) == pytest.approx(0.2)
    better = table.corrected({"a": 5, "b": 10}, 0.6)
    assert better({"a": 5, "b": 10}) == pytest.approx(6.0)
    assert LatencyTable.from_json(better.to_json()) == better


@pytest.fixture(scope="module")
def wide() -> ofx.Program:
    torch.manual_seed(0)
    return ofx.trace(
        nn.Sequential(nn.Linear(64, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 64)), (torch.randn(64, 64),)
    )


def test_curves_rise_and_are_cached(wide: ofx.Program, tmp_path: Path) -> None:
    cached: list[bool] = []
    table = build(wide, "eager:cpu", points=2, cache=tmp_path, on_group=lambda _, __, c: cached.append(c))
    for curve in table.curves.values():
        assert curve.widths == (256, 512)
        assert curve.seconds[0] < curve.seconds[1]
    parts = cost_model(wide).macs  # both groups are in the middle layer, which counts in both
    shared = sum(v * 512 * 512 for names, v in parts.monomials.items() if len(names) == 2) / parts(dict.fromkeys(table.curves, 512))
    assert table.factor * sum(c.seconds[-1] for c in table.curves.values()) == pytest.approx((1 + shared) * table.dense)
    again = build(wide, "eager:cpu", points=2, cache=tmp_path, on_group=lambda _, __, c: cached.append(c))
    assert again.curves == table.curves
    assert cached == [False, False, True, True]


class _Said:
    """A measurement that follows a rule: a part of the time that no table knows does not shrink."""

    def __init__(self, dense: ofx.Program, fixed: float) -> None:
        self.macs, self.fixed = ofx.cost(dense).macs, fixed
        self.calls = 0

    def __call__(self, programs: dict[str, ofx.Program], **_: object) -> _Said:
        self.share = self.fixed + (1 - self.fixed) * ofx.cost(programs["small"]).macs / self.macs
        self.calls += 1
        return self

    def ratio(self, name: str) -> Ratio:
        return Ratio("dense", name, 1, 1 / self.share, 1 / self.share, 1 / self.share)


def _table(program: ofx.Program) -> LatencyTable:
    widths = tuple(range(32, 513, 32))
    curve = Curve(widths, tuple(0.5 * w / 512 for w in widths), (0.0,) * len(widths))
    return LatencyTable("eager:cpu", 1.0, {g.name: curve for g in ofx.group(program).free})


@pytest.mark.parametrize("method", ["knapsack", "rank", "kwon"])
def test_the_loop_ends_on_the_measured_budget(wide: ofx.Program, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    said = _Said(wide, fixed=0.2)
    monkeypatch.setattr(closed_loop, "measure", said)
    budget = parse_budget("latency <= 60% @ eager:cpu")
    state = State(wide, scores=ofx.score(wide, "random"))
    done = search_by_latency(state, find_pass(method, "search", budget=budget), budget, tables={"eager:cpu": _table(wide)})
    assert done.plan is not None
    assert 0.57 <= said.share <= 0.60
    assert all(len(units) % 8 == 0 for units in done.plan.kept.values())  # widths that engines like, unasked
    assert 1 < said.calls <= 5
    assert len(done.plan.provenance["rounds"]) == said.calls


def test_the_search_of_single_steps_measures_too(wide: ofx.Program, monkeypatch: pytest.MonkeyPatch) -> None:
    said = _Said(wide, fixed=0.2)
    monkeypatch.setattr(closed_loop, "measure", said)
    monkeypatch.setattr(closed_loop, "build", lambda program, target: _table(program))
    plan = ofx.search(wide, ofx.score(wide, "random"), "latency <= 60% @ eager:cpu", "knapsack")
    assert 0.57 <= said.share <= 0.60
    assert len(plan.provenance["rounds"]) == said.calls


def test_a_latency_that_cannot_be_reached_lists_what_was_measured(wide: ofx.Program, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(closed_loop, "measure", _Said(wide, fixed=0.9))
    budget = parse_budget("latency <= 50% @ eager:cpu")
    state = State(wide, scores=ofx.score(wide, "random"))
    with pytest.raises(BudgetError) as caught:
        search_by_latency(state, find_pass("knapsack", "search", budget=budget), budget, tables={"eager:cpu": _table(wide)}, rounds=2)
    assert "no plan met latency <= 50% @ eager:cpu in 2 rounds" in str(caught.value) or "cannot be met" in str(caught.value)


def test_a_latency_without_a_table_says_where_it_comes_from(wide: ofx.Program) -> None:
    step = find_pass("rank", "search", budget="latency <= 60% @ eager:cpu")
    with pytest.raises(BudgetError) as caught:
        step.apply(State(wide, scores=ofx.score(wide, "random")))
    assert "needs latencies measured on eager:cpu" in str(caught.value)


@pytest.mark.slow
def test_measured_end_to_end(wide: ofx.Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPTIN_FX_CACHE", str(tmp_path))
    result = ofx.prune(wide, wide.args, score="magnitude", compensate="none", search="knapsack", budget="latency <= 70% @ eager:cpu")
    (facts,) = result.plan.provenance["latency"]
    assert facts["measured"] <= 0.73
    assert result.report.after.flops < result.report.before.flops

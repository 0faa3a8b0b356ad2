"""search-steps: part of the way is carried out, and what is left is scored again before the next part is planned."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import nn

import optin_fx as ofx
from optin_fx.annotation import annotated_scores
from optin_fx.budget import parse_budget
from optin_fx.data import batches_of
from optin_fx.errors import PipelineError
from optin_fx.passes.search_steps import SearchSteps
from optin_fx.pipeline import State, find_pass
from optin_fx.plan import make_plan
from optin_fx.reconstruction import reconstruct
from optin_fx.retrace import retrace
from optin_fx.stepwise import budget_at, scores_of_kept


@pytest.fixture(scope="module")
def program() -> ofx.Program:
    torch.manual_seed(0)
    layers = [layer for a, b in pairwise((16, 48, 48, 6)) for layer in (nn.Linear(a, b), nn.ReLU())][:-1]
    return ofx.trace(nn.Sequential(*layers).eval(), (torch.randn(4, 16),), dynamic_shapes=({0: torch.export.Dim("batch")},))


@pytest.fixture(scope="module")
def state(program: ofx.Program) -> State:
    torch.manual_seed(1)
    data = batches_of(program, [torch.randn(32, 16) for _ in range(8)], needed_for="the test")
    return State(program, data, ofx.score(program, "trajectory-sketch", data))


def test_budgets_on_the_way_fall_by_equal_factors(program: ofx.Program) -> None:
    dense = ofx.cost(program)
    first, last = (budget_at(parse_budget("flops <= 25% and params <= 36%"), program, share).limits for share in (0.5, 1.0))
    assert [limit.value for limit in first] == pytest.approx([0.5 * dense.flops, 0.6 * dense.params])
    assert [limit.value for limit in last] == pytest.approx([0.25 * dense.flops, 0.36 * dense.params])
    assert not first[0].relative


def test_scores_of_what_is_gone_are_zero_and_others_are_new(program: ofx.Program, state: State) -> None:
    assert state.scores is not None
    (one, other) = (g.name for g in ofx.group(program).free)
    plan = make_plan(program, {one: [3, 5, 40]})
    again = {one: torch.tensor([1.0, 2.0, 3.0]), other: torch.full((48,), 7.0)}
    found = scores_of_kept(state.scores, plan, again)
    assert found[one][[3, 5, 40]].tolist() == [1.0, 2.0, 3.0]
    assert int(found[one].count_nonzero()) == 3
    assert found[other].tolist() == [7.0] * 48
    kept = scores_of_kept(state.scores, plan, {other: again[other]})  # a group that the smaller program does not have any more
    assert torch.equal(kept[one][[3, 5, 40]], state.scores[one][[3, 5, 40]])


def test_two_steps_are_what_their_parts_make(program: ofx.Program, state: State) -> None:
    """Half of the way, compensated; scored by the criterion at hand; the rest of the way."""
    assert state.scores is not None
    plan = find_pass("steps", "search", budget="flops <= 25%").apply(state).plan
    half = find_pass("rank", "search", budget="flops <= 50%").apply(state).plan
    assert plan is not None
    assert half is not None
    module, _ = reconstruct(program, half, state.data, find_pass("reconstruct{ratios=(0.001, 0.1)}", "rewrite"))  # type: ignore[arg-type]
    small = retrace(module, program, provenance={})
    again = ofx.score(small, "trajectory-sketch", state.data)
    want = ofx.search(small, again, f"flops <= {0.25 * ofx.cost(program).flops}", "rank")
    for name, units in plan.kept.items():
        whole = half.kept.get(name, tuple(range(48)))
        assert units == tuple(whole[unit] for unit in want.kept.get(name, range(len(whole))))
    assert plan.kept != find_pass("rank", "search", budget="flops <= 25%").apply(state).plan.kept  # type: ignore[union-attr]
    assert ofx.cost(ofx.rewrite(program, plan)).flops <= 0.25 * ofx.cost(program).flops


def test_one_step_is_rank(state: State) -> None:
    one = find_pass("steps{steps=1, balance=0.5}", "search", budget="flops <= 40%").apply(state).plan
    rank = find_pass("rank{balance=0.5}", "search", budget="flops <= 40%").apply(state).plan
    assert one is not None
    assert rank is not None
    assert one.kept == rank.kept


def test_bounds_hold_over_all_steps(program: ofx.Program, state: State) -> None:
    """Floors are shares of the dense extent, not of what a step has left."""
    search = find_pass("steps{steps=3}", "search", budget="flops <= 45%", min_keep=0.4, align=4)
    plan = search.apply(state).plan
    assert plan is not None
    assert len(plan.kept) == 2
    assert all(len(units) >= round(0.4 * 48) and len(units) % 4 == 0 for units in plan.kept.values())


def test_a_try_may_be_made_in_steps(state: State) -> None:
    plan = find_pass("trial", "search", budget="flops <= 25%", tries=("", "steps=2"), cautious="").apply(state).plan
    assert plan is not None
    assert list(plan.provenance["tries"]) == ["defaults", "steps=2"]
    assert plan.provenance["tried"] == min(plan.provenance["tries"], key=plan.provenance["tries"].get)


def test_the_dense_program_keeps_its_scores(program: ofx.Program, state: State) -> None:
    assert state.scores is not None
    find_pass("steps", "search", budget="flops <= 25%").apply(state)
    noted = annotated_scores(program)
    assert noted is not None
    assert all(torch.allclose(noted[name], state.scores[name], rtol=1e-5) for name in state.scores)


def test_what_steps_refuse(program: ofx.Program, state: State) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        SearchSteps(steps=0)
    with pytest.raises(PipelineError, match="does not compensate"):
        find_pass("steps{compensate=slice}", "search", budget="flops <= 50%").apply(state)
    with pytest.raises(PipelineError, match="use search-rank"):
        ofx.search(program, state.scores, "latency <= 60% @ onnxruntime:cpu", "steps", data=state.data)  # type: ignore[arg-type]

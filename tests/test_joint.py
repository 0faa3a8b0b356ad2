"""score-joint: measured losses of whole shares, with and without what the other units can make up for."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import optin_fx as ofx
from optin_fx.data import batches_of
from optin_fx.errors import PipelineError
from optin_fx.passes.score_fisher import ScoreFisher
from optin_fx.passes.score_joint import slopes_of
from optin_fx.pipeline import State, find_pass
from optin_fx.testing import published


def test_slopes_never_fall_and_keep_the_loss_of_the_last_point() -> None:
    slopes = slopes_of([(0, 0.0), (2, 2.0), (4, 3.0), (8, 13.0)], torch.ones(10))
    assert slopes.tolist() == pytest.approx([0.75] * 4 + [2.5] * 6, rel=1e-5)
    assert (slopes.diff() > 0).all()


def test_a_loss_is_shared_out_by_what_units_are_worth() -> None:
    worth = torch.tensor([1.0, 3.0, 5.0, 5.0, 20.0])
    assert slopes_of([(0, 0.0), (2, 2.0), (4, 6.0)], worth).tolist() == pytest.approx([0.5, 1.5, 2.0, 2.0, 8.0], rel=1e-5)
    assert slopes_of([(0, 0.0), (2, 2.0), (4, 6.0)], torch.zeros(5)).tolist() == pytest.approx([1.0, 1.0, 2.0, 2.0, 2.0], rel=1e-5)


@pytest.fixture(scope="module")
def twins() -> tuple[ofx.Program, list[torch.Tensor]]:
    """Sixteen hidden units, of which the second eight are half as large copies of the first."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 5))
    with torch.no_grad():
        model[0].weight[8:], model[0].bias[8:] = 0.5 * model[0].weight[:8], 0.5 * model[0].bias[:8]
        model[2].weight[:, 8:] *= 0.5
    program = ofx.trace(model.eval(), (torch.randn(4, 12),), dynamic_shapes=({0: torch.export.Dim("batch")},))
    return program, [torch.randn(64, 12) for _ in range(4)]


def test_what_others_make_up_for_is_not_lost(twins: tuple[ofx.Program, list[torch.Tensor]]) -> None:
    program, data = twins
    name = next(g.name for g in ofx.group(program).free if g.name.startswith("0"))
    options = {"within": "magnitude", "shares": (0.5,), "measured": 64}
    refitted = ofx.score(program, "joint", data, ridge=1e-6, **options)[name]
    masked = ofx.score(program, "joint", data, refitted=False, **options)[name]
    assert set(torch.argsort(refitted)[:8].tolist()) == set(range(8, 16))
    assert float(masked[8:].sum()) > 1e-5
    assert float(refitted[8:].sum()) < 1e-3 * float(masked[8:].sum())


def test_masked_scores_are_the_measured_divergence(twins: tuple[ofx.Program, list[torch.Tensor]]) -> None:
    program, data = twins
    scores = ofx.score(program, "joint", data, within="random", shares=(0.25, 0.5), refitted=False, measured=64)
    from optin_fx.outputs import output_terms

    (term,), held = output_terms(program), data[-1]
    for g in ofx.group(program).free:
        order = torch.argsort(scores[g.name], stable=True)
        plan = ofx.make_plan(program, {g.name: order[g.extent // 2 :].tolist()})
        with torch.no_grad():
            dense, small = program.module()(held), ofx.rewrite(program, plan).module()(held)
        loss = float(term.divergence(small - dense, dense).mean())
        assert float(scores[g.name][order[: g.extent // 2]].sum()) == pytest.approx(loss, rel=1e-3)


def test_only_a_ranking_criterion_may_rank(twins: tuple[ofx.Program, list[torch.Tensor]]) -> None:
    program, data = twins
    with pytest.raises(PipelineError, match="ranks no units"):
        ofx.score(program, "joint", data, within="joint")
    with pytest.raises(PipelineError, match="ascending"):
        ofx.score(program, "joint", data, shares=(0.5, 0.25))


def test_groups_of_other_kinds_keep_what_they_had() -> None:
    program = published.program("minilm", brief=True)
    data = [ofx.Batch(program.args, program.kwargs)]
    earlier = ofx.score(program, "activation", data)
    found = ofx.score(program, "joint", data, within="activation", shares=(0.5,), kinds="head", allocate="within")
    for g in ofx.group(program).free:
        same = torch.equal(found[g.name], earlier[g.name])
        assert same == (g.kind != "head"), g.name
        if not same:
            assert torch.equal(torch.argsort(found[g.name], stable=True), torch.argsort(earlier[g.name], stable=True))


def test_scores_at_hand_are_not_made_again(twins: tuple[ofx.Program, list[torch.Tensor]], monkeypatch: pytest.MonkeyPatch) -> None:
    program, data = twins
    state = State(program, batches_of(program, data, needed_for="the test"), ofx.score(program, "fisher", data, labels="sampled"))
    step = find_pass("joint", "score", within="fisher{labels=sampled}")
    made = step.apply(state).scores
    monkeypatch.setattr(ScoreFisher, "score", None)
    again = step.apply(state).scores
    assert made is not None
    assert again is not None
    assert all(torch.equal(made[name], again[name]) for name in made)

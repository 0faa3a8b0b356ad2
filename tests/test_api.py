"""`prune`, the whole way, on small models; nothing of the user's is changed."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import optin_fx as ofx
from optin_fx.errors import BudgetError, DataError, PipelineError


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
        self.body = nn.Sequential(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.Dropout(0.5), nn.Conv2d(32, 16, 1))
        self.head = nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        return self.head((x + self.body(x)).mean((2, 3)))


@pytest.fixture
def model() -> Small:
    torch.manual_seed(0)
    return Small().train()


DATA = [torch.randn(8, 3, 6, 6, generator=torch.Generator().manual_seed(i)) for i in range(4)]


@pytest.mark.parametrize("score", ["trajectory-sketch", "fisher", "magnitude", "random"])
@pytest.mark.parametrize("compensate", [True, False])
def test_prune(model: Small, score: str, compensate: bool) -> None:
    before = copy.deepcopy(model.state_dict())
    stages = []
    result = ofx.prune(
        model,
        (DATA[0],),
        data=DATA,
        score=score,
        budget="flops <= 50%",
        compensate=compensate,
        on_progress=lambda step, _, __: stages.append(step.name()),
    )
    assert model.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not any(hasattr(p, "grad") and p.grad is not None for p in model.parameters())
    dense = ofx.cost(result.dense)
    assert result.report.after.flops <= 0.5 * dense.flops
    assert result.report.after.params < dense.params
    assert result.report.agreement.equal
    assert len(stages) == 4
    assert (stages[0], stages[-1]) == (f"score-{score}", "narrow-rows")
    assert result.module()(torch.randn(5, 3, 6, 6)).shape == (5, 4)  # another batch size
    assert "sliced against masked: equal" in str(result.report)


def test_compensation_helps_on_held_out_data(model: Small) -> None:
    model.eval()
    fresh = torch.randn(64, 3, 6, 6, generator=torch.Generator().manual_seed(99))
    with torch.no_grad():
        dense = model(fresh)
        errors = [
            float((ofx.prune(model, (DATA[0],), data=DATA, budget="flops <= 60%", compensate=c).program(fresh) - dense).square().mean())
            for c in (True, False)
        ]
    assert errors[0] < errors[1]


def test_bad_input_is_refused_before_any_work(model: Small) -> None:
    with pytest.raises(BudgetError, match="cannot read the budget"):
        ofx.prune(model, (DATA[0],), data=DATA, budget="half")
    with pytest.raises(PipelineError, match="there is no pass called 'best'"):
        ofx.prune(model, (DATA[0],), data=DATA, score="best")
    with pytest.raises(DataError, match="pruning with compensation needs calibration data"):
        ofx.prune(model, (DATA[0],), score="magnitude")


def test_no_data_is_needed_without_compensation(model: Small) -> None:
    result = ofx.prune(model, (DATA[0],), score="magnitude", budget="params <= 60%", compensate=False)
    assert result.report.after.params <= 0.6 * result.report.before.params


def test_the_result_is_trainable(model: Small) -> None:
    module = ofx.prune(model, (DATA[0],), data=DATA, budget="flops <= 50%").module()
    optimiser = torch.optim.SGD([p for p in module.parameters() if p.requires_grad], lr=0.1)
    target = torch.randn(8, 4)
    losses = []
    for _ in range(5):
        loss = (module(DATA[0]) - target).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]


def test_single_steps_make_what_prune_makes(model: Small) -> None:
    whole = ofx.prune(model, (DATA[0],), data=DATA, budget="flops <= 50%")
    program = ofx.trace(model, (DATA[0],))
    plan = ofx.search(program, ofx.score(program, data=DATA), "flops <= 50%", "trial", DATA)
    assert plan.kept == whole.plan.kept
    small = ofx.rewrite(program, plan, DATA)
    with torch.no_grad():
        assert torch.equal(small(DATA[0]), whole.program(DATA[0]))
        assert not torch.allclose(small(DATA[0]), ofx.rewrite(program, plan)(DATA[0]))
        assert torch.equal(ofx.rewrite(program, plan, DATA, "none")(DATA[0]), ofx.rewrite(program, plan)(DATA[0]))
        tuned = ofx.rewrite(program, plan, DATA, "tune")
        assert tuned.provenance["refit"]
        assert not torch.allclose(tuned(DATA[0]), small(DATA[0]))


def test_single_steps_say_what_they_miss(model: Small) -> None:
    program = ofx.trace(model, (DATA[0],))
    scores = ofx.score(program, "magnitude")
    with pytest.raises(DataError, match="search-trial needs calibration data"):
        ofx.search(program, scores, method="trial")
    with pytest.raises(DataError, match="rewrite-reconstruct needs calibration data"):
        ofx.rewrite(program, ofx.search(program, scores), compensate="reconstruct")
    with pytest.raises(PipelineError, match="there is no pass called 'best'"):
        ofx.rewrite(program, ofx.search(program, scores), DATA, "best")


def test_a_family_is_scored_once_and_each_meets_its_budget(model: Small) -> None:
    seen: list[str] = []
    family = ofx.prune_family(
        model, (DATA[0],), data=DATA, budget="flops <= 90,70,50%", on_progress=lambda step, *_: seen.append(step.name())
    )
    assert seen.count("score-trajectory-sketch") == 1
    assert [name for name in seen if name.startswith("search")] == ["search-trial"] * 3
    shares = [ofx.cost(member.program).flops / ofx.cost(member.dense).flops for member in family]
    assert all(share <= limit for share, limit in zip(shares, (0.9, 0.7, 0.5), strict=True))
    assert shares == sorted(shares, reverse=True)


def test_steps_score_again_and_tell_one_plan(model: Small) -> None:
    seen: list[str] = []
    result = ofx.prune(model, (DATA[0],), data=DATA, budget="flops <= 50%", steps=3, on_progress=lambda step, *_: seen.append(step.name()))
    assert seen.count("score-trajectory-sketch") == 3
    small, dense = ofx.cost(result.program), ofx.cost(result.dense)
    assert 0.4 * dense.flops < small.flops <= 0.5 * dense.flops
    assert ofx.cost(result.dense, result.plan) == small
    assert result.report.agreement
    plain = ofx.prune(model, (DATA[0],), score="magnitude", compensate="none", budget="flops <= 50%", steps=2)
    with torch.no_grad():  # nothing but units of the dense model: the composed plan is what was done
        assert torch.allclose(plain.program(DATA[0]), ofx.rewrite(plain.dense, plain.plan)(DATA[0]), atol=1e-5)

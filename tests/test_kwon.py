"""Kwon et al.: the search is exact, rearrangement lowers the joint loss and keeps every count."""

from __future__ import annotations

from itertools import combinations, product
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import optin_fx as ofx
from optin_fx.errors import ScoreError
from optin_fx.passes.search_kwon import select
from optin_fx.pipeline import State, find_pass
from optin_fx.scores import Scores
from optin_fx.swaps import greedy, local_search
from optin_fx.testing import published


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), classes=st.integers(1, 4), share=st.floats(0, 1.1))
def test_selection_is_the_best_of_all(seed: int, classes: int, share: float) -> None:
    random = np.random.default_rng(seed)
    made = [(float(random.uniform(0.5, 7)), np.sort(random.exponential(size=random.integers(1, 6)))[::-1]) for _ in range(classes)]
    allowance = share * sum(cost * len(values) for cost, values in made)
    taken = select(made, allowance)
    value = sum(values[:n].sum() for (_, values), n in zip(made, taken, strict=True))
    assert sum(cost * n for (cost, _), n in zip(made, taken, strict=True)) <= allowance + 1e-9
    best = max(
        sum(values[:n].sum() for (_, values), n in zip(made, counts, strict=True))
        for counts in product(*(range(len(values) + 1) for _, values in made))
        if sum(cost * n for (cost, _), n in zip(made, counts, strict=True)) <= allowance
    )
    assert value == pytest.approx(best)


def test_heads_and_neurons_as_in_the_papers_loop() -> None:
    program = published.program("minilm", brief=True)
    scores = ofx.score(program, "random")
    plan = ofx.search(program, scores, "flops <= 55%", "kwon", kinds=("head", "neuron"), min_keep=0.0, min_width=1)
    assert ofx.cost(program, plan).flops <= 0.55 * ofx.cost(program).flops
    ranked = ofx.search(program, scores, "flops <= 55%", "rank", kinds=("head", "neuron"), min_keep=0.0, min_width=1)
    kept = [sum(float(scores[n][list(p.kept.get(n, range(len(scores[n]))))].sum()) for n in scores) for p in (plan, ranked)]
    assert kept[0] >= kept[1] - 1e-9


def _joint(loss: torch.Tensor, gone: torch.Tensor) -> float:
    return float(loss[gone][:, gone].sum())


@pytest.mark.parametrize("seed", range(5))
def test_exchanges_lower_the_joint_loss(seed: int) -> None:
    torch.manual_seed(seed)
    g = torch.randn(30, 9, dtype=torch.float64)
    loss = g.T @ g
    alone = torch.zeros(9, dtype=torch.bool)
    alone[torch.argsort(loss.diagonal())[:4]] = True
    once, further = greedy(loss, 4), local_search(loss, greedy(loss, 4), 100)
    assert once.sum() == further.sum() == 4
    assert _joint(loss, further) <= _joint(loss, once) <= _joint(loss, alone) + 1e-9
    least = min(_joint(loss, torch.tensor([i in chosen for i in range(9)])) for chosen in combinations(range(9), 4))
    assert least <= _joint(loss, further) + 1e-9


def test_two_units_that_cancel_go_together() -> None:
    torch.manual_seed(0)
    g = torch.randn(50, 6)
    g[:, 4] *= 0.8
    g[:, 5] = -1.5 * g[:, 4]  # the largest alone, little together with the smallest
    program = ofx.trace(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)), (torch.randn(3, 4),))
    scores = Scores({"0:neuron": g.double().square().mean(0)}, "made-up", program.fingerprint, extra={"gradients/0:neuron": g})
    plan = ofx.make_plan(program, {"0:neuron": [2, 3, 4, 5]})
    done = find_pass("rearrange-fisher").apply(State(program, scores=scores, plan=plan)).plan
    assert done is not None
    assert done.kept["0:neuron"] == (0, 1, 2, 3)
    assert done.provenance["rearranged"]["loss after"] < done.provenance["rearranged"]["loss before"]


def test_rearrangement_without_gradients_says_what_to_do() -> None:
    program = ofx.trace(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)), (torch.randn(3, 4),))
    scores = ofx.score(program, "magnitude")
    state = State(program, scores=scores, plan=ofx.search(program, scores, "flops <= 50%"))
    with pytest.raises(ScoreError) as caught:
        find_pass("rearrange-fisher").apply(state)
    assert str(caught.value).endswith("fix score with fisher{keep_samples=True}")


def test_the_whole_method_in_one_call() -> None:
    """Kwon et al. end to end: Fisher scores, search, rearrangement, tuning; the result says what was done."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 32), nn.GELU(), nn.Linear(32, 4))
    data = [torch.randn(32, 8) for _ in range(6)]
    found = {}
    for rearrange, compensate in ((True, "tune"), (False, "none")):
        result = ofx.prune(
            model, (data[0],), data=data, score="fisher", search="kwon", rearrange=rearrange, compensate=compensate, budget="flops <= 50%"
        )
        fresh = torch.randn(512, 8)
        with torch.no_grad():
            found[compensate] = float((result.program(fresh) - model(fresh)).square().mean())
    assert [name.partition("{")[0] for name, _ in result.report.stages] == ["score-fisher", "search-kwon", "rewrite-slice", "narrow-rows"]
    assert found["tune"] < 0.9 * found["none"]


def test_single_steps_come_to_the_same(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 32), nn.GELU(), nn.Linear(32, 4))
    data = [torch.randn(32, 8) for _ in range(3)]
    whole = ofx.prune(model, (data[0],), data=data, score="fisher", search="kwon", rearrange=True, compensate=False)
    program = ofx.trace(model, (data[0],))
    ofx.score(program, "fisher", data=data, keep_samples=True).save(tmp_path / "scores.safetensors")
    scores = ofx.Scores.load(tmp_path / "scores.safetensors")
    plan = ofx.search(program, scores, method="kwon", rearrange=True)
    assert plan.kept == whole.plan.kept
    assert plan.provenance["rearranged"] == whole.plan.provenance["rearranged"]
    assert plan.kept != ofx.search(program, scores, method="kwon").kept
    greedy = ofx.search(program, scores, method="kwon", rearrange="rearrange-fisher{search=greedy}")
    assert greedy.provenance["rearranged"]["loss after"] >= plan.provenance["rearranged"]["loss after"]
    with pytest.raises(ScoreError, match="no gradients of single samples"):
        ofx.search(program, ofx.score(program, "fisher", data=data), method="kwon", rearrange=True)

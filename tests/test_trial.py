"""search-trial: the way of least measured divergence wins; and what search-rank's discount does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import optin_fx as ofx
from optin_fx.annotation import annotated_scores
from optin_fx.data import batches_of, first_batches, parted
from optin_fx.errors import PipelineError
from optin_fx.execution import execution
from optin_fx.outputs import Coverage, OutputTerm
from optin_fx.passes import search_trial
from optin_fx.passes.score_joint import ScoreJoint
from optin_fx.passes.search_trial import chosen
from optin_fx.pipeline import State, find_pass
from optin_fx.testing import published


@pytest.fixture(scope="module")
def program() -> ofx.Program:
    torch.manual_seed(0)
    widths = (16, 48, 48, 48, 6)
    layers = [layer for a, b in pairwise(widths) for layer in (nn.Linear(a, b), nn.ReLU())][:-1]
    return ofx.trace(nn.Sequential(*layers).eval(), (torch.randn(4, 16),), dynamic_shapes=({0: torch.export.Dim("batch")},))


@pytest.fixture(scope="module")
def state(program: ofx.Program) -> State:
    torch.manual_seed(1)
    data = batches_of(program, [torch.randn(32, 16) for _ in range(8)], needed_for="the test")
    return State(program, data, ofx.score(program, "trajectory-sketch", data))


def test_only_what_is_surely_better_replaces_the_first() -> None:
    first = torch.tensor([1.0, 2.0, 3.0, 4.0])
    losses = {"": first, "worse": first + 0.1, "noise": torch.tensor([0.0, 3.0, 2.0, 4.5]), "better": first - 0.1, "best": first - 0.2}
    assert chosen(losses, 2.0, 0.0) == "best"
    assert chosen({name: losses[name] for name in ("", "worse", "noise")}, 2.0, 0.0) == ""
    assert chosen({name: losses[name] for name in ("", "worse", "noise")}, 0.0, 0.0) == "noise"
    assert chosen({"": first, "broken": first + 1e30}, 2.0, 0.0) == ""
    assert chosen(losses, 2.0, 0.079) == "best"  # better by 0.2 of 2.5
    assert chosen(losses, 2.0, 0.081) == ""


def coverage(terms: Sequence[OutputTerm], outputs: Sequence[Sequence[torch.Tensor]]) -> float:
    found = Coverage(terms)
    for flat in outputs:
        found.add(flat)
    return found.value


def test_few_classes_are_little_coverage() -> None:
    logits, features = OutputTerm(0, "logits", "logits", 1), OutputTerm(1, "1", "features", 1)
    sure = 50.0 * torch.eye(8)
    for rows, reached in ((range(8), 1.0), (range(4), 1.0), ([1, 2, 1, 2, 1, 2, 1, 2], 15 / 32), ([3, 3, 3, 3], 11 / 32)):
        outputs = [[sure[list(rows)[:2]], torch.randn(2, 8)], [sure[list(rows)[2:]], torch.randn(len(rows) - 2, 8)]]
        assert coverage([logits, features], outputs) == pytest.approx(reached)
    assert coverage([features], outputs) == 1.0
    assert coverage([logits], [[sure[:1].expand(1000, -1)]]) == pytest.approx(0.125875)
    torch.manual_seed(0)
    independent, few = sure[torch.randint(8, (64,))], sure[torch.randint(2, (64,))]
    for doubt in (1.0, 0.05):  # how sure single predictions are changes little
        assert coverage([logits], [[doubt * independent]]) == pytest.approx(1.0, abs=0.1)
    assert coverage([logits], [[few]]) == pytest.approx(0.27, abs=0.02)
    assert coverage([logits], [[torch.zeros(2, 8)]]) == 1.0  # undecided: no more than all
    assert coverage([logits], [[sure], [sure[:, :4]]]) == 1.0  # positions: as many as there are tokens


def test_a_margin_counts_where_classes_are_not_reached(state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"budget": "flops <= 40%", "sure": 0.0}
    plan = find_pass("trial", "search", tries=("discount=1", "balance=0.9"), cautious="", **options).apply(state).plan
    assert plan is not None
    worse, better = sorted(plan.provenance["tries"], key=plan.provenance["tries"].get, reverse=True)
    for reached, margin, tries, tried in (
        (0.4, 1e9, [worse, better], worse),
        (0.4, 0.0, [worse, better], better),
        (0.5, 1e9, [], better),  # the data show enough: no other way is tried
    ):
        monkeypatch.setattr(search_trial.Coverage, "value", reached)
        plan = find_pass("trial", "search", tries=(better,), cautious=worse, margin=margin, **options).apply(state).plan
        assert plan is not None
        assert list(plan.provenance["tries"]) == tries
        assert plan.provenance["tried"] == tried
        assert plan.provenance["coverage"] == reached


def test_the_try_of_least_divergence_is_kept(state: State) -> None:
    tries = ("", "discount=1", "balance=0.9", "discount=0.5")
    step = find_pass("trial", "search", budget="flops <= 40%", tries=tries, cautious="")
    plan = step.apply(state).plan
    assert plan is not None
    losses = plan.provenance["tries"]
    assert len(losses) > 1
    best = min(losses, key=losses.get)
    own = find_pass(f"rank{{{'' if best == 'defaults' else best}}}", "search", budget="flops <= 40%").apply(state).plan
    assert own is not None
    assert plan.kept == own.kept
    assert ofx.cost(ofx.rewrite(state.program, plan)).flops <= 0.4 * ofx.cost(state.program).flops


def test_dense_outputs_that_wait_on_disk_change_nothing(state: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = find_pass("trial", "search", budget="flops <= 40%")
    plan = step.apply(state).plan
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with execution(memory_limit=1000):  # not one batch of them
        tight = step.apply(state).plan
    assert plan is not None
    assert tight is not None
    assert tight.provenance["tries"] == plan.provenance["tries"]
    assert tight.kept == plan.kept
    assert not list(tmp_path.iterdir())


def test_a_criterion_that_builds_on_another_builds_on_the_scores_at_hand(state: State) -> None:
    fisher = replace(state, scores=ofx.score(state.program, "fisher{labels=sampled}", state.data))
    budget, seen = "flops <= 40%", parted(state.program, state.data, 128)[0]
    for text, within in (
        ("reconstruction:", "fisher{labels=sampled}"),
        ("reconstruction{within=wanda{normalise=none}}:", "wanda{normalise=none}"),
    ):
        plan = find_pass("trial", "search", budget=budget, tries=(text,), cautious="").apply(fisher).plan
        assert fisher.scores is not None
        found = find_pass("reconstruction", "score", within=within).apply(replace(fisher, data=seen))
        want = find_pass("rank", "search", budget=budget).apply(found).plan
        assert plan is not None
        assert want is not None
        assert plan.kept == want.kept
    joint = replace(state, scores=ofx.score(state.program, "joint", state.data))
    assert find_pass("trial", "search", budget=budget, tries=("joint:",), cautious="").apply(joint).plan is not None
    assert state.scores is not None
    own = replace(state, scores=replace(state.scores, method="measured by hand"))
    plans = [find_pass("trial", "search", budget=budget, tries=("reconstruction:",), cautious="").apply(one).plan for one in (own, state)]
    assert plans[0] is not None
    assert plans[1] is not None
    assert plans[0].kept == plans[1].kept  # within its default criterion, which is the state's


def test_a_criterion_measures_what_the_search_prunes(monkeypatch: pytest.MonkeyPatch) -> None:
    program = published.program("minilm", brief=True)
    data = [ofx.Batch(program.args, program.kwargs)]
    state = State(program, data, ofx.score(program, "trajectory-sketch", data, depth="last"))
    asked: list[ScoreJoint] = []
    score = ScoreJoint.score_after

    def seen(self: ScoreJoint, *given: Any) -> dict[str, torch.Tensor]:
        asked.append(self)
        return score(self, *given)

    monkeypatch.setattr(ScoreJoint, "score_after", seen)
    text = "joint{shares=(0.5,), allocate=within}: balance=0.5"
    for options in ({}, {"kinds": "neuron"}, {"freeze": ("*:head",)}):
        find_pass("trial", "search", tries=(text,), **options).apply(state)
    assert [step.kinds for step in asked] == [("head", "neuron"), ("neuron",), ("neuron",)]
    assert {step.within for step in asked} == {"score-trajectory-sketch{depth=last}"}


def test_other_criteria_are_scored_on_the_part_that_is_compensated_on(state: State) -> None:
    tries = ("discount=1", "magnitude:", "wanda{normalise=mean}: balance=0.5")
    step = find_pass("trial", "search", budget="flops <= 40%", tries=tries, cautious="", samples=64)
    seen, _ = parted(state.program, state.data, 64)
    plan = step.apply(state).plan
    carried = annotated_scores(state.program)
    assert plan is not None
    assert carried is not None
    assert state.scores is not None
    assert carried.method == state.scores.method
    assert set(plan.provenance["tries"]) == set(tries)
    best = min(plan.provenance["tries"], key=plan.provenance["tries"].get)
    scores = {
        tries[0]: state.scores,
        tries[1]: ofx.score(state.program, "magnitude"),
        tries[2]: ofx.score(state.program, "wanda", seen, normalise="mean"),
    }
    options = {tries[0]: {"discount": 1.0}, tries[1]: {}, tries[2]: {"balance": 0.5}}
    assert plan.kept == ofx.search(state.program, scores[best], "flops <= 40%", **options[best]).kept


@pytest.mark.parametrize("text", ["unheard: balance=0.5", "magnitude: unheard=1", "search-rank: balance=0.5"])
def test_a_try_that_names_nothing_is_refused(state: State, text: str) -> None:
    with pytest.raises(PipelineError):
        find_pass("trial", "search", budget="flops <= 50%", tries=("", text)).apply(state)


def test_options_of_the_search_hold_in_every_try(state: State) -> None:
    for text in ("", "discount=1"):
        step = find_pass("trial", "search", budget="flops <= 60%", tries=text, cautious="", freeze=("0",), align=8)
        plan = step.apply(state).plan
        assert plan is not None
        assert all(len(units) % 8 == 0 for units in plan.kept.values())
        assert not [name for name in plan.kept if name.startswith("0")]


def test_a_discount_cuts_earlier_groups_more(state: State) -> None:
    assert state.scores is not None
    first = next(iter(g.name for g in ofx.group(state.program).free))
    kept = [len(ofx.search(state.program, state.scores, "flops <= 50%", discount=d).kept.get(first, range(48))) for d in (0.0, 0.5, 1.0)]
    assert kept[0] >= kept[1] >= kept[2]
    assert kept[0] > kept[2]
    magnitude = ofx.score(state.program, "magnitude")  # no losses: comparable within a group only
    assert ofx.search(state.program, magnitude, discount=1.0).kept == ofx.search(state.program, magnitude).kept


def test_pruning_tries_where_it_compensates(state: State) -> None:
    given = {"data": state.data, "budget": "flops <= 50%"}
    assert ofx.prune(state.program, **given).plan.provenance["search"].startswith("search-trial")
    assert "reconstruction:" in ofx.prune(state.program, **given).plan.provenance["tries"]
    asked = ofx.prune(state.program, **given, score="magnitude").plan.provenance
    assert asked["search"].startswith("search-trial")
    assert asked["tries"].keys() <= {"defaults", "balance=0.5"}
    assert ofx.prune(state.program, **given, balance=0.5).plan.provenance["search"] == "search-rank{narrowed=True, balance=0.5}"
    assert ofx.prune(state.program, **given, compensate="none").plan.provenance["search"].startswith("search-rank")


def test_without_other_criteria_their_tries_are_made_with_the_scores_at_hand(state: State) -> None:
    options = {"budget": "flops <= 40%", "cautious": ""}
    others = ("wanda: discount=1", "", "magnitude: balance=0.9", "reconstruction:")
    one = find_pass("trial", "search", tries=others, criteria=False, **options).apply(state).plan
    two = find_pass("trial", "search", tries=("discount=1", "", "balance=0.9"), **options).apply(state).plan
    assert one is not None
    assert two is not None
    assert one.provenance["tries"] == two.provenance["tries"]
    with pytest.raises(PipelineError, match="at least one way"):
        find_pass("trial", "search", tries=())


def test_it_needs_a_compensation_to_try_with(state: State) -> None:
    with pytest.raises(PipelineError, match="does not compensate"):
        find_pass("trial", "search", compensate="slice").apply(state)


def test_whole_batches_are_taken_until_there_are_enough(program: ofx.Program) -> None:
    data = batches_of(program, [torch.randn(n, 16) for n in (4, 5, 6)], needed_for="the test")
    assert [len(first_batches(data, count)) for count in (1, 4, 5, 9, 10, 15, 99)] == [1, 1, 2, 2, 3, 3, 3]


def test_samples_are_parted_by_batches_or_by_rows(program: ofx.Program) -> None:
    data = batches_of(program, [torch.randn(8, 16) for _ in range(4)], needed_for="the test")
    assert [len(part) for part in parted(program, data, 0)] == [1, 3]
    assert [len(part) for part in parted(program, data, 9)] == [2, 2]
    assert [len(part) for part in parted(program, data, 1000)] == [3, 1]
    seen, unseen = parted(program, data[:1], 6)
    assert [len(part[0].args[0]) for part in (seen, unseen)] == [6, 2]
    assert torch.equal(torch.cat([seen[0].args[0], unseen[0].args[0]]), data[0].args[0])

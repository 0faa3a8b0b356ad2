"""Passes: registered by name, written and read as text, checked before they run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import FrozenInstanceError, dataclass, fields

import pytest
import torch
from torch import nn

import optin_fx as ofx
from optin_fx.data import Batch
from optin_fx.errors import PipelineError
from optin_fx.pipeline import Pass, Pipeline, ScorePass, State, find_pass, parse_pipeline, registered_passes
from optin_fx.program import Program


@pytest.fixture(scope="module")
def program() -> ofx.Program:
    torch.manual_seed(0)
    return ofx.trace(nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2)), (torch.rand(2, 4),))


@pytest.mark.parametrize("name", list(registered_passes()))
def test_every_pass_is_a_documented_frozen_dataclass(name: str) -> None:
    cls = registered_passes()[name]
    step = cls()
    assert cls.name() == name
    assert str(step) == name
    assert cls.writes
    assert cls.__doc__
    assert not fields(cls) or "Attributes:" in cls.__doc__
    documented = "".join(base.__doc__ or "" for base in cls.__mro__)
    assert all(f"{option.name}" in documented for option in fields(cls))
    with pytest.raises((FrozenInstanceError, AttributeError)):
        step.anything = 1  # type: ignore[attr-defined]


def test_a_file_holds_the_pass_that_it_is_named_after() -> None:
    for name, cls in registered_passes().items():
        if cls.__module__.startswith("optin_fx.passes"):
            assert cls.__module__.rpartition(".")[2] == name.replace("-", "_")


def test_text_form_reads_back() -> None:
    for text in ("score-fisher{draws=2, labels=sampled}", "search-rank{budget=flops <= 40%, kinds=('head', 'neuron')}", "rewrite-slice"):
        step = find_pass(text)
        assert find_pass(str(step)) == step
    nested = "score-joint{within=trajectory-sketch{lam=100, power=0.5}, measured=8}"
    assert find_pass(nested).within == "trajectory-sketch{lam=100, power=0.5}"  # type: ignore[attr-defined]
    tries = "search-trial{tries=('joint{shares=(0.4, 0.8), kinds=head}: discount=1', '')}"
    assert [str(step) for step in parse_pipeline(f"{nested} | {tries}").passes] == [nested, tries]
    assert find_pass("fisher", "score") == find_pass("score-fisher")
    assert str(find_pass("trajectory-sketch{probes=3}", "score")) == "score-trajectory-sketch{probes=3}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fissher", "there is no pass called 'fissher'"),
        ("fisher{drows=2}", "score-fisher has no option 'drows'"),
        ("fisher{2}", "cannot read the option '2' of fisher"),
        ("fisher{", "cannot read the pass 'fisher{'"),
        ("trajectory-sketch{depth=deep}", "score-trajectory-sketch refuses its options: depth is one of sum, mean, last; not 'deep'"),
    ],
)
def test_texts_that_are_no_pass(text: str, message: str) -> None:
    with pytest.raises(PipelineError) as caught:
        find_pass(text, "score")
    assert str(caught.value).splitlines()[0] == message


def test_what_is_read_must_have_been_written(program: ofx.Program) -> None:
    with pytest.raises(PipelineError) as caught:
        parse_pipeline("rewrite-slice").run(State(program))
    assert str(caught.value).splitlines()[0] == "rewrite-slice reads plan, which nothing before it writes"
    assert "search-rank" in str(caught.value)


def test_a_pipeline_runs_and_keeps_a_log(program: ofx.Program) -> None:
    seen: list[str] = []
    pipeline = Pipeline(
        parse_pipeline("score-magnitude | search-rank{budget=flops <= 50%} | rewrite-slice").passes,
        (lambda step, state, seconds: seen.append(step.name()),),
    )
    state = pipeline.run(State(program))
    assert seen == ["score-magnitude", "search-rank", "rewrite-slice"] == [name.split("{")[0] for name, _ in state.log]
    assert state.small is not None
    assert ofx.cost(state.small).flops <= 0.5 * ofx.cost(program).flops


def test_a_users_criterion_is_a_dataclass_with_one_method(program: ofx.Program) -> None:
    @dataclass(frozen=True)
    class ScoreEarlierUnits(ScorePass):
        """Keep the first units."""

        def score(self, program: Program, batches: Sequence[Batch]) -> dict[str, torch.Tensor]:
            return {g.name: -torch.arange(g.extent, dtype=torch.float64) for g in ofx.group(program).free}

    scores = ofx.score(program, ScoreEarlierUnits(), data=[torch.rand(2, 4)])
    values = {name: v - v.min() for name, v in scores.values.items()}
    plan = ofx.search(program, ofx.Scores(values, "first", program.fingerprint), "flops <= 50%")
    (units,) = plan.kept.values()
    assert units == tuple(range(len(units)))


def test_two_passes_of_one_name_are_refused() -> None:
    namespace = {"__module__": "elsewhere", "__doc__": "x"}
    with pytest.raises(PipelineError, match="two passes are called 'score-random'"):
        type("ScoreRandom", (Pass,), namespace)

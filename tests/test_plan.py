"""Plans: what they hold, their JSON, and the text of every refusal."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import optin_fx as ofx
from optin_fx.errors import LoadError, PlanError
from optin_fx.plan import check
from optin_fx.program import Program


class Net(nn.Module):
    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(4, width), nn.Linear(width, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(self.up(x).relu())


@pytest.fixture(scope="module")
def program() -> Program:
    return ofx.trace(Net(), (torch.randn(2, 4),))


def test_units_are_sorted_and_whole_groups_left_out(program: Program) -> None:
    plan = ofx.make_plan(program, {"up:neuron": torch.tensor([5, 0, 2])})
    assert plan.kept == {"up:neuron": (0, 2, 5)}
    assert plan.extents == {"up:neuron": 6}
    assert ofx.make_plan(program, {"up:neuron": range(6)}).kept == {}
    assert str(plan) == f"plan for program {program.fingerprint}: 1 groups shrink\n  up:neuron       3 of 6"


def test_json_and_back(program: Program, tmp_path: Path) -> None:
    plan = ofx.random_plan(program, keep=0.3, seed=3)
    assert ofx.Plan.from_json(plan.to_json()) == plan
    path = tmp_path / "plan.json"
    path.write_text(plan.to_json())
    assert ofx.Plan.from_json(str(path)) == plan
    assert json.loads(plan.to_json())["provenance"] == {"search": "random{keep=0.3, seed=3}"}


def test_a_random_plan_is_the_same_again_and_keeps_something(program: Program) -> None:
    assert ofx.random_plan(program, 0.5, 1) == ofx.random_plan(program, 0.5, 1)
    kept = [ofx.random_plan(program, 0.01, seed).kept["up:neuron"] for seed in range(5)]
    assert all(len(units) == 1 for units in kept)
    assert len(set(kept)) > 1


def test_the_plan_of_a_loaded_program_fits(program: Program, tmp_path: Path) -> None:
    plan = ofx.random_plan(program, 0.5, 1)
    loaded = ofx.load(program.save(tmp_path / "net.pt2"))
    assert torch.equal(ofx.rewrite(loaded, plan)(torch.ones(2, 4)), ofx.rewrite(program, plan)(torch.ones(2, 4)))


REFUSED = {
    "no unit": (
        {"up:neuron": []},
        "the plan keeps no unit of 'up:neuron'\n  so  its consumers would have nothing to read\n  fix keep at least one unit",
    ),
    "absent": ({"nothing": [0]}, "the plan names a group that does not exist: 'nothing'\n  fix print(ofx.group(program)) lists the names"),
    "too high": (
        {"up:neuron": [0, 6]},
        "the plan's units of 'up:neuron' are not ascending indices below 6\n  fix make plans with ofx.make_plan, which sorts them",
    ),
    "twice": (
        {"up:neuron": [1, 1]},
        "the plan's units of 'up:neuron' are not ascending indices below 6\n  fix make plans with ofx.make_plan, which sorts them",
    ),
    "pinned": (
        {"down:neuron": [0]},
        "the group 'down:neuron' cannot shrink\n  at  an output of the model at %linear_1, {source}\n  fix leave it out of the plan",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(program: Program, name: str) -> None:
    kept, text = REFUSED[name]
    with pytest.raises(PlanError) as error:
        ofx.make_plan(program, kept)
    pinned = ofx.group(program)["down:neuron"].pinned
    assert pinned is not None
    assert str(error.value) == text.format(source=pinned.rsplit(", ", 1)[-1])


def test_a_plan_that_is_not_sorted_by_hand(program: Program) -> None:
    plan = replace(ofx.make_plan(program, {"up:neuron": [0, 2]}), kept={"up:neuron": (2, 0)})
    with pytest.raises(PlanError, match="not ascending indices below 6"):
        check(plan, ofx.group(program))


def test_the_plan_of_another_model(program: Program) -> None:
    other = ofx.trace(Net(7), (torch.randn(2, 4),))
    with pytest.raises(PlanError) as error:
        ofx.rewrite(program, ofx.random_plan(other))
    assert str(error.value) == (
        f"the plan belongs to another model\n  at  plan {other.fingerprint}, program {program.fingerprint}\n"
        "  so  its unit numbers mean nothing here\n"
        "  fix make a plan for this program with ofx.search, or trace the model that the plan was made for"
    )


@pytest.mark.parametrize("text", ["", "{", "[]", '{"kept": 3}', "no such file"])
def test_text_that_is_no_plan(text: str) -> None:
    with pytest.raises(LoadError) as error:
        ofx.Plan.from_json(text)
    assert str(error.value).startswith("not a plan: ")
    assert str(error.value).endswith("\n  fix write plans with plan.to_json()")

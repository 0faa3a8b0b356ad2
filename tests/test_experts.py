"""Experts as units: one that is gone is never chosen, in the masked program and by a gate as in the smaller one."""

from __future__ import annotations

import logging
import warnings

import pytest
import torch

import optin_fx as ofx
from optin_fx.data import Batch
from optin_fx.errors import PlanError
from optin_fx.interpreter import Runner
from optin_fx.passes import SearchKnapsack, SearchRank
from optin_fx.steering import bounds_of
from optin_fx.testing import patterns, zoo
from optin_fx.writeback import apply_to


def stock(name: str) -> ofx.Program:
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    return zoo.get(name).program()


@pytest.fixture(scope="module")
def mixtral() -> ofx.Program:
    return stock("mixtral")


@pytest.fixture
def routed() -> ofx.Program:
    pattern = patterns.get("ScatteredWeights")
    return ofx.trace(pattern.model(), (torch.randn(6, 7),))


def experts(program: ofx.Program) -> list[ofx.Group]:
    return [g for g in ofx.group(program).free if g.kind == "expert"]


def test_an_expert_is_a_unit(mixtral: ofx.Program) -> None:
    first, second = experts(mixtral)
    assert first.name == "model.layers.0.mlp.gate:expert"
    assert second.members == (
        ("model.layers.1.mlp.gate.weight", 0),
        ("model.layers.1.mlp.experts.gate_up_proj", 0),
        ("model.layers.1.mlp.experts.down_proj", 0),
    )
    assert (first.extent, first.least, first.removable) == (4, 2, False)


@pytest.mark.parametrize("name", ["mixtral", "mixtral_batched", "qwen3_moe", "gpt_oss", "deepseek_v3"])
def test_stock_experts_are_cut_exactly(name: str) -> None:
    """Experts alone: a whole model's random plan would hide a slip in a branch that adds little."""
    program = stock(name)
    assert experts(program)
    plan = ofx.make_plan(program, {g.name: [0, g.extent - 1] for g in experts(program)})
    agreement = ofx.verify(program, plan)
    assert agreement.max_rel < 2e-6
    assert agreement.moved > 100 * agreement.max_rel
    small = ofx.rewrite(program, plan)
    assert ofx.cost(small).params == ofx.cost(program, plan).params
    for parameter, dim in {member for group in experts(program) for member in group.members}:
        assert small.tensors[parameter].shape[dim] in (2, 4)  # four: two of each of two groups that are left


def test_as_many_stay_as_are_chosen(mixtral: ofx.Program) -> None:
    name = "model.layers.0.mlp.gate:expert"
    with pytest.raises(PlanError) as error:
        ofx.make_plan(mixtral, {name: [3]})
    assert str(error.value) == (
        f"the plan keeps 1 of the units of '{name}'\n  so  the model chooses 2 of them\n  fix keep at least 2"
    )  # fmt: skip
    group = ofx.group(mixtral)[name]
    assert bounds_of(group, (), 1) == (2, 4)
    assert all(len(ofx.random_plan(mixtral, keep=0.1, seed=seed).kept[name]) == 2 for seed in range(5))


@pytest.mark.parametrize("search", [SearchRank(budget="params <= 60%"), SearchKnapsack(budget="params <= 60%")])
def test_searches_leave_enough(routed: ofx.Program, search: SearchRank | SearchKnapsack) -> None:
    plan = search.search(routed, ofx.score(routed, "magnitude"))
    assert len(plan.kept.get("expert", range(4))) >= 2
    assert ofx.verify(routed, plan)


def test_a_router_that_takes_all_has_no_expert_to_spare() -> None:
    class All(patterns.get("ScatteredWeights").make):  # type: ignore[misc]
        best = 4

    (group,) = [g for g in ofx.group(ofx.trace(All(), (torch.randn(2, 7),))) if ("up", 0) in g.members]
    assert group.pinned == "as many of its units are chosen as there are"


def test_a_gate_of_zero_is_the_mask(routed: ofx.Program) -> None:
    gate = torch.tensor([1.0, 0.0, 1.0, 0.0])
    batch = Batch(routed.args, {})
    (found,) = Runner(routed, gates={"expert": gate})(batch)
    plan = ofx.make_plan(routed, {"expert": [0, 2]})
    torch.testing.assert_close(found, ofx.mask(routed, plan)(*routed.args))
    torch.testing.assert_close(found, ofx.rewrite(routed, plan)(*routed.args))
    assert not torch.allclose(found, routed(*routed.args))


def test_a_gate_s_gradient_is_that_of_the_probability(routed: ofx.Program) -> None:
    """A gate multiplies an expert's share before the shares are brought to a sum of one."""
    batch = Batch(routed.args, {})

    def loss(gate: torch.Tensor) -> torch.Tensor:
        return Runner(routed, gates={"expert": gate})(batch)[0].square().sum()

    gate = torch.ones(4, requires_grad=True)
    (gradient,) = torch.autograd.grad(loss(gate), gate)
    assert gradient.abs().max() > 1e-3
    for unit in range(4):
        step = torch.zeros(4)
        step[unit] = 1e-3
        difference = (loss(torch.ones(4) + step) - loss(torch.ones(4) - step)) / 2e-3
        torch.testing.assert_close(gradient[unit], difference, rtol=2e-2, atol=2e-3)


@pytest.mark.parametrize("method", ["taylor", "fisher", "trajectory", "trajectory-sketch{probes=4}"])
def test_criteria_that_read_gates_tell_experts_apart(routed: ofx.Program, method: str) -> None:
    data = [torch.randn(6, 7) for _ in range(4)]
    scores = ofx.score(routed, method, data)["expert"]
    assert scores.min() >= 0
    assert len({round(float(s), 9) for s in scores}) > 1


def test_gates_of_experts_that_are_ranked_by_one_score_and_weighed_by_another() -> None:
    """DeepSeek-V3: the choice hands out positions only, so the gates' gradients come from where the weights are looked up."""
    program = stock("deepseek_v3")
    batch = Batch(program.args, program.kwargs)
    names = [g.name for g in experts(program)]
    for name in names:
        extent = ofx.group(program)[name].extent
        gate = torch.ones(extent, requires_grad=True)
        (gradient,) = torch.autograd.grad(Runner(program, gates={name: gate})(batch)[0].square().sum(), gate)
        assert gradient.abs().min() > 0
        gone = torch.ones(extent)
        gone[0] = 0.0
        (found, *_) = Runner(program, gates={name: gone})(batch)
        plan = ofx.make_plan(program, {name: range(1, extent)})
        torch.testing.assert_close(found, ofx.mask(program, plan)(*program.args, **program.kwargs).logits)
    scores = ofx.score(program, "trajectory-sketch", [batch])
    assert all(scores[name].min() > 0 for name in names)


@pytest.mark.parametrize("method", ["activation", "wanda"])
def test_criteria_that_read_contractions_hold_experts_for_alike(method: str) -> None:
    pattern = patterns.get("LookedUpExperts")
    program = ofx.trace(pattern.model(), (torch.randn(6, 7),))
    scores = ofx.score(program, method, [torch.randn(6, 7)])
    assert scores["router:expert"].tolist() == [1.0] * 4
    assert all(values.std() > 0 for name, values in scores.values.items() if name != "router:expert")


def test_reasons_of_experts_that_stay() -> None:
    def reason(name: str) -> str:
        pattern = patterns.get(name)
        groups = ofx.group(ofx.trace(pattern.model(), pattern.example()))
        return str(next(g.pinned for g in groups if ("router.weight", 0) in g.members)).split(" at %")[0]

    assert reason("CalculatedPlaces") == "its units' positions are computed with (aten.add.Tensor)"
    assert reason("ReturnedPlaces") == "positions along it are an output of the model"
    assert reason("ComparedPlaces") == "its units' positions are computed with (aten.eq.Scalar)"
    assert reason("WeighedExperts") == "a softmax over it"


def test_experts_are_written_back() -> None:
    entry = zoo.get("mixtral")
    model = entry.model()
    args, kwargs = entry.example()
    program = ofx.trace(model, args, kwargs, entry.shapes())
    plan = ofx.make_plan(program, {g.name: [0, 1, 3] for g in experts(program)})
    apply_to(model, program, plan)
    block = model.model.layers[0].mlp  # type: ignore[union-attr, index]
    assert (block.experts.num_experts, len(block.experts.down_proj), len(block.gate.weight)) == (3, 3, 3)
    torch.testing.assert_close(model(*args, **kwargs).logits, ofx.rewrite(program, plan)(*args, **kwargs).logits)

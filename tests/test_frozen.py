"""Statistics of weights stay those of the dense weights where a cut would change them, and are computed where it would not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import optin_fx as ofx
from optin_fx.errors import WriteBackError
from optin_fx.testing import patterns, zoo
from optin_fx.writeback import apply_to


def program_of(name: str) -> tuple[nn.Module, ofx.Program]:
    pattern = patterns.get(name)
    model = pattern.model()
    return model, ofx.trace(model, pattern.example())


def statistics(program: ofx.Program) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in program.tensors.items() if "_statistics_" in name}


@pytest.mark.parametrize("name", ["StandardisedFilters", "StandardisedByHand", "WeightNorm"])
def test_they_are_kept_where_inputs_go_and_computed_where_filters_go(name: str) -> None:
    _, program = program_of(name)
    reads, makes = ("a:filter", "filter") if "a:filter" in ofx.group(program) else ("a:neuron", "neuron")
    inputs = ofx.rewrite(program, ofx.make_plan(program, {reads: [0, 3, 5, 7, 8]}))
    filters = ofx.rewrite(program, ofx.make_plan(program, {makes: [1, 2, 9]}))
    assert statistics(inputs)
    assert not statistics(filters)
    for kept, plan in ((inputs, {reads: [0, 3, 5, 7, 8]}), (filters, {makes: [1, 2, 9]})):
        assert ofx.verify(program, ofx.make_plan(program, plan)).max_rel < 2e-6
        torch.testing.assert_close(kept(*program.args), ofx.mask(program, ofx.make_plan(program, plan))(*program.args))


def test_such_a_program_trains_is_saved_and_is_cut_again(tmp_path: Any) -> None:
    _, program = program_of("StandardisedFilters")
    small = ofx.rewrite(program, ofx.random_plan(program, seed=0))
    module = small.module()
    before = module(*program.args).detach()
    module.train()
    torch.testing.assert_close(module(*program.args), before)  # no statistics of the weights' own, in either mode
    module(*program.args).square().sum().backward()
    weight = dict(module.named_parameters())["b.weight"]
    assert weight.grad is not None
    assert weight.grad.abs().max() > 0
    again = ofx.load(small.save(tmp_path / "small.pt2"))
    torch.testing.assert_close(again(*program.args), before)
    assert ofx.verify(again, ofx.random_plan(again, seed=1))


def test_a_module_that_computes_them_cannot_follow_and_is_left_as_it_was() -> None:
    model, program = program_of("StandardisedFilters")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(WriteBackError):
        apply_to(model, program, ofx.make_plan(program, {"a:filter": [0, 3, 5, 7, 8]}))
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    apply_to(model, program, ofx.make_plan(program, {"filter": [1, 2, 9]}))
    assert model.b.weight.shape == (3, 12, 3, 3)  # type: ignore[union-attr]


def test_bit_is_prunable() -> None:
    entry = zoo.get("bit")
    args, _ = entry.example()
    program = ofx.trace(entry.model(), args)
    groups = ofx.group(program)
    assert sum("stages.0.blocks.0.conv2.weight" in dict(g.members) for g in groups.free) == 2  # what it reads and what it makes
    assert not any("batch_norm" in (g.pinned or "") for g in groups)
    assert ofx.verify(program, ofx.random_plan(program, seed=3)).max_rel < 1e-5

"""Batches that are cut to save memory give the gradients of whole ones."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import optin_fx as ofx
from optin_fx.data import Batch, rows
from optin_fx.execution import execution
from optin_fx.gradients import gate_gradients
from optin_fx.sensitivity import sensitivities
from optin_fx.tapes import Cutter, FrozenRunner, ones


class Net(nn.Module):
    """Two residual blocks over tokens, a mean over them, and a head; the first block's output is returned, too."""

    def __init__(self, *, time_first: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.head, self.time_first = nn.Linear(5, 8), nn.Linear(8, 3), time_first
        self.blocks = nn.ModuleList(nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 7), nn.GELU(), nn.Linear(7, 8)) for _ in range(2))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        first = x = self.embed(x)
        for block in self.blocks:
            x = x + block(x)
        return self.head(x.mean(1)), first.transpose(0, 1).tanh() if self.time_first else first.tanh()


def limit(program: ofx.Program, batch: Batch, samples: int) -> int:
    """A memory limit for so many samples."""
    size, _ = Cutter(program, ())._of_two(batch)
    return samples * size // 2 + 8


@pytest.mark.parametrize("criterion", ["trajectory-sketch", "fisher", "taylor"])
def test_cut_batches_change_no_score(criterion: str) -> None:
    x = torch.randn(7, 6, 5, dtype=torch.float64)
    program = ofx.trace(Net().double(), (x,))
    batch = Batch((x,))
    with execution(memory_limit=limit(program, batch, 3)):
        assert Cutter(program, ()).parts(batch) == [slice(0, 2), slice(2, 4), slice(4, 7)]
        cut = ofx.score(program, criterion, data=[x])
    whole = ofx.score(program, criterion, data=[x])
    for name in whole:
        assert float(whole[name].max()) > 0
        assert torch.allclose(cut[name], whole[name], rtol=1e-10), name


def test_rows_of_samples_stay_in_order() -> None:
    x = torch.randn(5, 6, 5, dtype=torch.float64)
    program = ofx.trace(Net().double(), (x,))
    found = []

    def weighted(logits: torch.Tensor) -> torch.Tensor:
        return (logits.square().sum(1) * torch.arange(1.0, 6.0, dtype=torch.float64)).sum()

    for most in (5, 2):
        with execution(memory_limit=limit(program, Batch((x,)), most)):
            gradients = gate_gradients(program, [Batch((x,))], lambda _, outputs, *__: [("mine", weighted(outputs[0]))], keep_samples=True)
        found.append(gradients["mine"].samples)
    for name, value in found[0].items():
        assert value.shape[0] == 5
        assert torch.allclose(value, found[1][name], rtol=1e-6), name


def test_outputs_that_do_not_begin_with_the_batch_are_not_cut() -> None:
    x = torch.randn(6, 6, 5, dtype=torch.float64)  # as many tokens as samples
    program = ofx.trace(Net(time_first=True).double(), (x,))
    cutter, batch = Cutter(program, ()), Batch((x,))
    runner = FrozenRunner(program)
    assert not cutter.cuts(runner.sources(runner(batch)), batch)
    whole = ofx.score(program, "fisher", data=[{"x": x, "labels": x}], loss=loss)
    with execution(memory_limit=limit(program, batch, 2)):
        assert len(cutter.parts(batch)) == 3
        cut = ofx.score(program, "fisher", data=[{"x": x, "labels": x}], loss=loss)
    for name in whole:
        assert torch.allclose(cut[name], whole[name], rtol=1e-10)


def loss(outputs: tuple[torch.Tensor, torch.Tensor], labels: object) -> torch.Tensor:
    return outputs[0].square().sum() + outputs[1].square().sum()


def test_a_program_of_one_batch_size_is_not_cut() -> None:
    x = torch.randn(6, 6, 5)
    program = ofx.trace(Net(), (x,), dynamic_shapes={})
    with execution(memory_limit=1000):
        assert Cutter(program, ()).parts(Batch((x,))) == [slice(0, 6)]


def test_a_tape_without_weights_is_measured() -> None:
    """What the counting run notes is what autograd keeps: twice as much for twice the tokens, and no weights."""
    program = ofx.trace(Net(), (torch.randn(4, 6, 5),), dynamic_shapes={"x": {0: torch.export.Dim.AUTO, 1: torch.export.Dim.AUTO}})
    sizes = [Cutter(program, ())._of_two(Batch((torch.randn(4, tokens, 5),)))[0] for tokens in (200, 400)]
    assert sizes[1] == pytest.approx(2 * sizes[0], rel=0.05)
    kept = 7 + 8 + 2 + 7 + 7  # the first gate's operand; then a norm's input, mean and spread, an activation's input, a gate's operand
    assert sizes[0] == pytest.approx(2 * 200 * 4 * kept, rel=0.01)


def test_gates_have_a_row_for_each_sample() -> None:
    program = ofx.trace(Net(), (torch.randn(4, 6, 5),))
    batch = Batch((torch.randn(4, 6, 5),))
    assert {gate.shape[0] for gate in ones(program, rows(batch)).values()} == {4}


def test_cut_batches_change_no_sensitivity() -> None:
    x = torch.randn(7, 6, 5, dtype=torch.float64)
    program = ofx.trace(Net().double(), (x,))
    nodes = {node.name: 2 for node in program.graph_module.graph.nodes if "gelu" in node.name}
    assert len(nodes) == 2
    with execution(memory_limit=limit(program, Batch((x,)), 3)):
        cut = sensitivities(program, [Batch((x,))], nodes, draws=2)
    whole = sensitivities(program, [Batch((x,))], nodes, draws=2)
    for name in nodes:
        assert float(whole[name].features.max()) > 0
        assert torch.allclose(cut[name].features, whole[name].features)
        assert torch.allclose(cut[name].rows[0], whole[name].rows[0])

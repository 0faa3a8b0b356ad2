"""Gate gradients: the sketch is unbiased at second order, per-sample gates are per-sample gradients."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import optin_fx as ofx
from optin_fx.data import Batch
from optin_fx.errors import PipelineError, ScoreError
from optin_fx.gradients import Rows, gate_gradients
from optin_fx.interpreter import Runner
from optin_fx.layers import layers_of


class Block(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.norm, self.fc1, self.fc2 = nn.LayerNorm(width), nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.fc2(F.gelu(self.fc1(self.norm(x))))


class Net(nn.Module):
    """Two residual blocks over tokens, a mean over them, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(5, 8)
        self.blocks = nn.ModuleList([Block(8, 7), Block(8, 6)])
        self.head = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(1))


@pytest.fixture
def program() -> ofx.Program:
    torch.manual_seed(0)
    return ofx.trace(Net().double(), (torch.randn(4, 6, 5, dtype=torch.float64),))


def test_a_gate_of_zero_is_the_removal_of_the_unit(program: ofx.Program) -> None:
    name, keep = "blocks.0.fc1:neuron", [0, 2, 5]
    gate = torch.zeros(7, dtype=torch.float64)
    gate[keep] = 1.0
    with torch.no_grad():
        (gated,) = Runner(program, gates={name: gate})(Batch(program.args))
    small = ofx.rewrite(program, ofx.make_plan(program, {name: keep}))
    assert torch.allclose(gated, small(*program.args), rtol=1e-12, atol=1e-12)


def test_per_sample_gates_give_per_sample_gradients(program: ofx.Program) -> None:
    """One backward pass over the batch equals one per sample."""
    data = program.args[0]

    def objective(_: Runner, outputs: list[torch.Tensor], __: Batch, ___: torch.Generator) -> list[tuple[str, torch.Tensor]]:
        return [("loss", outputs[0].square().sum())]

    together = gate_gradients(program, [Batch((data,))], objective)["loss"].squared
    apart = gate_gradients(program, [Batch((row[None],)) for row in data], objective)["loss"].squared
    for name in together:
        assert together[name].max() > 0
        assert torch.allclose(together[name], apart[name], rtol=1e-6)


def test_samples_are_weighed_by_what_all_their_gradients_are(program: ofx.Program) -> None:
    """Weights of rows multiply their squares, in every objective and however the samples come in batches."""
    data = program.args[0]

    def objective(_: Runner, outputs: list[torch.Tensor], __: Batch, ___: torch.Generator) -> list[tuple[str, torch.Tensor]]:
        return [("square", outputs[0].square().sum()), ("cube", outputs[0].pow(3).sum())]

    def weigh(rows: Rows) -> torch.Tensor:
        return sum(own.double().square().sum(1) for groups in rows.values() for own in groups.values()).sqrt()

    plain = gate_gradients(program, [Batch((data,))], objective, keep_samples=True)
    counts = weigh({label: one.samples for label, one in plain.items()})
    assert counts.shape == (4,)
    for batches in ([Batch((data,))], [Batch((data[:1],)), Batch((data[1:],))]):
        found = gate_gradients(program, batches, objective, weigh=weigh)
        for label, one in plain.items():
            for name, own in one.samples.items():
                assert torch.allclose(found[label].squared[name], (counts[:, None] * own.double().square()).mean(0), rtol=1e-5)
                assert torch.equal(found[label].mean[name], one.mean[name]) or len(batches) > 1  # only squares are weighed


@pytest.mark.parametrize("power", [0.0, 0.5])
def test_a_sample_counts_by_a_power_of_its_total(program: ofx.Program, power: float) -> None:
    def scored(data: torch.Tensor, power: float) -> torch.Tensor:
        scores = ofx.score(program, "trajectory-sketch", data=[data], power=power, lam=3.0)
        return torch.cat([scores[name] for name in scores])

    one = program.args[0][:1]
    whole = scored(one, 1.0)
    assert torch.allclose(scored(one, power), whole * whole.sum() ** (power - 1), rtol=1e-5)
    if power == 0.0:  # all samples share out one
        assert float(scored(program.args[0], power).sum()) == pytest.approx(1.0, rel=1e-6)


def test_a_power_beyond_one_is_refused(program: ofx.Program) -> None:
    with pytest.raises(PipelineError, match="power is a number between 0 and 1"):
        ofx.score(program, "trajectory-sketch", data=[program.args[0]], power=1.5)


def exact_second_order(program: ofx.Program, name: str, unit: int, depth: str) -> float:
    """|dM/dg|^2 / T^2 of one unit's gate, by central differences of the Gram matrices themselves, mean over samples."""
    layers = layers_of(program) if depth == "sum" else layers_of(program)[-1:]
    extent, step, grams = ofx.group(program)[name].extent, 1e-4, []
    for sign in (1, -1):
        gate = torch.ones(extent, dtype=torch.float64)
        gate[unit] += sign * step
        runner = Runner(program, gates={name: gate}, taps=tuple(layer.node for layer in layers))
        with torch.no_grad():
            runner(Batch(program.args))
        features = [F.normalize(layer.rows(runner.tapped[layer.node]), dim=-1) for layer in layers]
        grams.append([f @ f.mT for f in features])
    total = 0.0
    for plus, minus in zip(*grams, strict=True):
        total += float(((plus - minus) / (2 * step)).square().sum((1, 2)).mean()) / plus.shape[-1] ** 2
    return total


@pytest.mark.parametrize("depth", ["sum", "last"])
def test_the_sketch_is_unbiased(program: ofx.Program, depth: str) -> None:
    """With many probes the sketch of the distance term approaches its definition, for every unit of every group."""
    scores = ofx.score(program, "trajectory-sketch", data=[program.args], probes=1500, depth=depth, lam=0.0)
    for name in scores:
        exact = [exact_second_order(program, name, unit, depth) for unit in range(len(scores[name]))]
        error = (scores[name] / torch.tensor(exact, dtype=torch.float64) - 1).abs()
        assert error.max() < 0.15, (name, error)


def test_the_output_term_is_the_divergence_at_second_order(program: ofx.Program) -> None:
    """Half the Fisher information by drawn labels equals KL(dense || gated) for a small change of the gate."""
    fisher = ofx.score(program, "fisher", data=[program.args], draws=3000, labels="sampled")
    name, step = "blocks.1.fc1:neuron", 1e-3
    with torch.no_grad():
        (dense,) = Runner(program)(Batch(program.args))
        logp = F.log_softmax(dense, -1)
        for unit in range(6):
            gate = torch.ones(6, dtype=torch.float64)
            gate[unit] -= step
            (gated,) = Runner(program, gates={name: gate})(Batch(program.args))
            divergence = float((logp.exp() * (logp - F.log_softmax(gated, -1))).sum(-1).mean()) / step**2
            assert float(fisher[name][unit]) == pytest.approx(divergence, rel=0.15)


def test_an_objective_must_be_a_scalar(program: ofx.Program) -> None:
    with pytest.raises(ScoreError) as caught:
        gate_gradients(program, [Batch(program.args)], lambda _, outputs, __, ___: [("mine", outputs[0])])
    assert str(caught.value) == "the objective 'mine' has shape (4, 3)\n  fix return a scalar, summed over samples"


def test_non_finite_activations_are_named(program: ofx.Program) -> None:
    broken = program.args[0].clone()
    broken[0, 0, 0] = float("nan")
    with pytest.raises(ScoreError) as caught:
        ofx.score(program, "trajectory-sketch", data=[broken])
    assert str(caught.value) == (
        "the model's outputs are not finite\n  at  batch 0\n  so  units cannot be ranked\n  fix the input x holds NaN; mend the data"
    )


class Overflowing(nn.Module):
    """Makes an infinity at one place, and NaN of it later."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.head = nn.Linear(4, 6), nn.Linear(6, 5), nn.Linear(5, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.fc1(x))
        x = torch.exp(x * 1000.0)  # overflows
        return self.head(F.relu(self.fc2(x - x)))


@pytest.mark.parametrize("method", ["fisher", "taylor", "activation", "trajectory", "trajectory-sketch"])
def test_the_first_node_that_overflows_is_named_with_its_line(method: str) -> None:
    program = ofx.trace(Overflowing(), (torch.rand(3, 4),))
    with pytest.raises(ScoreError) as caught:
        ofx.score(program, method, data=[torch.rand(3, 4), 100 * torch.rand(3, 4)])
    line = next(i for i, text in enumerate(Path(__file__).read_text().splitlines(), 1) if "# overflows" in text)
    assert caught.value.at == "batch 0"
    assert caught.value.fix == f"the first infinity is made by %exp, test_gradients.py:{line}; mend the data or the model there"


def test_an_objective_must_depend_on_the_outputs(program: ofx.Program) -> None:
    with pytest.raises(ScoreError, match="does not depend on the model's outputs"):
        gate_gradients(program, [Batch(program.args)], lambda _, outputs, __, ___: [("mine", outputs[0].detach().sum())])


def test_layers_are_the_blocks_ends(program: ofx.Program) -> None:
    assert [layer.name for layer in layers_of(program)] == ["blocks.0", "blocks.1"]
    assert all(layer.feature == 2 for layer in layers_of(program))

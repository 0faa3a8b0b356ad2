"""Changes behind a gate, as differences: equal to running the gated model whole, on published architectures."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import optin_fx as ofx
from optin_fx.directions import Directions
from optin_fx.interpreter import Runner
from optin_fx.linearity import op_name
from optin_fx.products import Products
from optin_fx.suffix import Rerun, Suffix, can_subtract
from optin_fx.testing import published

MODELS = ("minilm", "efficientnet_lite0", "swin_tiny")


def double(program: ofx.Program) -> ofx.Program:
    """The program in float64, so that subtracting two runs is exact enough to compare with."""
    exported = copy.deepcopy(program.exported)
    made = ofx.Program(exported, *_doubled(program.args, program.kwargs))
    for tensor in made.tensors.values():
        if tensor.is_floating_point():
            tensor.data = tensor.data.double()
    return made


def _doubled(args: tuple[object, ...], kwargs: dict[str, object]) -> tuple[tuple[object, ...], dict[str, object]]:
    def up(value: object) -> object:
        return value.double() if isinstance(value, torch.Tensor) and value.is_floating_point() else value

    return tuple(map(up, args)), {name: up(value) for name, value in kwargs.items()}


@pytest.mark.parametrize("name", MODELS)
def test_changes_equal_the_difference_of_two_runs(name: str) -> None:
    program = published.program(name, brief=True)
    program = double(program) if name in ("minilm", "efficientnet_lite0") else program
    loose = 1e-9 if name in ("minilm", "efficientnet_lite0") else 2e-2  # float32: subtracting two runs cancels
    batch = ofx.Batch(program.args, program.kwargs)
    assert can_subtract(program)
    dense, suffix = Runner(program), Suffix(program, batch)
    with torch.no_grad():
        before = dense(batch)
    groups = ofx.group(program).free
    for g in groups[:: max(1, len(groups) // 12)]:
        rows = next(t.shape[0] for t in (*program.args, *program.kwargs.values()) if isinstance(t, torch.Tensor))
        gate = torch.ones(rows, g.extent)
        gate[:, g.extent // 2] = 0.0
        with torch.no_grad():
            after = Runner(program, gates={g.name: gate})(batch)
        changes = suffix.behind(g.name, gate)
        for i, (new, old) in enumerate(zip(after, before, strict=True)):
            if isinstance(new, torch.Tensor) and new.is_floating_point():
                expected = new - old
                found = changes.outputs.get(i, torch.zeros_like(expected))
                scale = max(float(expected.abs().max()), 1e-3 * float(old.abs().max()))
                assert float((found - expected).abs().max()) <= loose * scale, g.name


class Writing(nn.Module):
    """Writes into a tensor that another view of it shows, which is read by nobody, before the units are read, or before and after."""

    def __init__(self, seen: str) -> None:
        super().__init__()
        self.fc1, self.fc2, self.seen = nn.Linear(4, 6), nn.Linear(6, 3), seen

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.fc1(x)
        view = hidden.view(-1, 6)
        early = self.fc2(hidden) if self.seen == "before and after" else 0.0
        written = hidden.relu_()
        return early + self.fc2(written if self.seen == "nowhere" else written + view)


@pytest.mark.parametrize(("seen", "subtracts"), [("nowhere", True), ("before", True), ("before and after", False)])
def test_writing_ops(seen: str, subtracts: bool) -> None:
    x = torch.randn(5, 4, dtype=torch.float64)
    program = ofx.trace(Writing(seen).double(), (x,))
    batch = ofx.Batch((x,))
    assert can_subtract(program) == subtracts
    gate = torch.ones(5, 6)
    gate[:, 2] = 0
    (g,) = ofx.group(program).free
    found = (Suffix(program, batch) if subtracts else Rerun(program, batch)).behind(g.name, gate)
    with torch.no_grad():
        expected = Runner(program, gates={g.name: gate})(batch)[0] - Runner(program)(batch)[0]
    assert torch.allclose(found.outputs[0], expected)
    scores = ofx.score(program, "trajectory", data=[x])
    assert scores[g.name].max() > 0


class Shared(nn.Module):
    """A change in memory that is read again: through a view after an op that could write into it, as an output, twice by one op."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.fc1, self.fc2, self.how = nn.Linear(4, 6), nn.Linear(6, 8), how

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        y = self.fc2(torch.relu(self.fc1(x)))
        if self.how == "view":
            view = y.view(-1, 2, 4)
            return torch.sigmoid(y), view.tanh()
        if self.how == "output":
            return y, torch.sigmoid(y)
        if self.how == "twice":
            return (torch.matmul(y.view(-1, 2, 4), y.view(-1, 4, 2)),)
        if self.how == "sum":
            return (y.view(-1, 2, 4) + torch.sigmoid(y).view(-1, 2, 4), (y + 1.0).tanh() - y)
        return (torch.sigmoid(y).view(-1, 2, 4).expand(3, -1, -1, -1).tanh(),)


@pytest.mark.parametrize("how", ["view", "output", "twice", "sum", "expand"])
def test_memory_is_written_into_only_where_nobody_reads_it_again(how: str) -> None:
    x = torch.randn(5, 4, dtype=torch.float64)
    program = ofx.trace(Shared(how).double(), (x,))
    batch = ofx.Batch((x,))
    suffix, rerun = Suffix(program, batch), Rerun(program, batch)
    (g,) = ofx.group(program).free
    for unit in (2, 4, 2):  # a second walk finds what the first one left
        gate = torch.ones(5, 6)
        gate[:, unit] = 0
        found, expected = suffix.behind(g.name, gate).outputs, rerun.behind(g.name, gate).outputs
        assert found.keys() == expected.keys()
        for i in expected:
            assert torch.allclose(found[i], expected[i]), (how, i)


def test_memory_is_reused_at_all() -> None:
    """In a chain of a linear layer and an activation nothing but the layer's result is allocated."""
    x = torch.randn(3, 4)
    program = ofx.trace(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 2)), (x,))
    suffix = Suffix(program, ofx.Batch((x,)))
    name = ofx.group(program).free[0].name
    suffix.behind(name, torch.ones(3, 6))
    (steps,) = suffix.steps.values()
    assert [(op_name(step.node), bool(step.own)) for step in steps] == [("linear", False), ("tanh", True), ("linear", True)]


@pytest.mark.parametrize("precision", ["full", "bf16"])
def test_packed_weights_multiply_alike_for_any_number_of_rows(precision: str) -> None:
    weight = torch.randn(48, 32)
    node = torch.fx.Graph().placeholder("weight")
    products = Products(precision, packed=True)
    for shape in ((4, 8, 32), (3, 32), (2, 5, 7, 32)):
        change = torch.randn(shape)
        expected = change @ weight.mT
        error = float((products(change, weight, node).float() - expected).norm() / expected.norm())
        assert error < (1e-6 if precision == "full" else 1e-2), shape


def test_a_gate_multiplies_only_the_filters_that_it_takes_away() -> None:
    x = torch.randn(4, 3, 8, 8, dtype=torch.float64)
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3, stride=2), nn.Flatten(), nn.Linear(16, 2)).double()
    program = ofx.trace(model, (x,))
    batch, gate = ofx.Batch((x,)), torch.ones(4, 6)
    gate[1, 2], gate[3, 5] = 0.0, 0.5  # per sample, and in part
    name = ofx.group(program).free[0].name
    found, expected = (kind(program, batch).behind(name, gate).outputs[0] for kind in (Suffix, Rerun))
    assert torch.allclose(found, expected)
    assert float(found[0].abs().max()) == 0.0


def test_changes_of_direction_equal_the_difference_of_directions() -> None:
    x, d = torch.randn(4, 7, 5, dtype=torch.float64), torch.randn(4, 7, 5, dtype=torch.float64)
    for size in (1e-6, 1.0, 100.0):
        expected = nn.functional.normalize(x + size * d, dim=-1) - nn.functional.normalize(x, dim=-1)
        assert torch.allclose(Directions.of(x).change(size * d), expected, rtol=1e-8, atol=1e-15)

"""Changes behind a gate, as differences: equal to running the gated model whole, on published architectures."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import optin_fx as ofx
from optin_fx.interpreter import Runner
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

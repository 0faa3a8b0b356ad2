"""A dense run that waits at a node: what goes on from there equals running the gated program whole."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import optin_fx as ofx
from optin_fx.frontier import Frontier, Functional, places
from optin_fx.interpreter import Runner
from optin_fx.testing import published


@pytest.mark.parametrize("name", ["minilm", "efficientnet_lite0", "swin_tiny"])
def test_going_on_equals_running_whole(name: str) -> None:
    program = published.program(name, brief=True)
    batch = ofx.Batch(program.args, program.kwargs)
    at, frontier = places(program), Frontier(program, batch)
    before = None
    for g in sorted(ofx.group(program).free, key=lambda g: at[g.name])[::7]:
        gates = {g.name: torch.ones(g.extent).index_fill_(0, torch.tensor([0, g.extent // 2]), 0.0)}
        frontier.advance(at[g.name])
        assert frontier.at == at[g.name]
        with torch.no_grad():
            whole = Runner(program, gates=gates)(batch)
        for _ in range(2):  # the dense values are as they were
            for found, wanted in zip(frontier.onward(Functional(program, gates=gates)), whole, strict=True):
                assert torch.equal(found, wanted), g.name
        assert before is None or not torch.equal(whole[0], before)
        before = whole[0]


def test_only_what_is_read_later_is_kept() -> None:
    torch.manual_seed(0)
    layers = [layer for _ in range(4) for layer in (nn.Linear(8, 8), nn.ReLU())]
    program = ofx.trace(nn.Sequential(*layers, nn.Linear(8, 3)).eval(), (torch.randn(2, 8),))
    frontier, at = Frontier(program, ofx.Batch(program.args)), places(program)
    assert list(at.values()) == sorted(at.values())
    for place in at.values():
        frontier.advance(place)
        activations = [node for node in frontier.values if node.op == "call_function"]
        assert len(activations) == 1


class Writing(nn.Module):
    """Writes into what was read earlier: `relu_` has a counterpart that does not write, filling by index has none."""

    def __init__(self, filled: bool) -> None:
        super().__init__()
        self.fc1, self.fc2, self.fc3, self.filled = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 3), filled

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.fc1(x).relu()
        early = self.fc2(hidden).relu()
        if self.filled:
            hidden.index_fill_(0, torch.tensor([0]), 2.0)
        else:
            hidden = (hidden - 0.5).relu_()
        return self.fc3(early + hidden)


@pytest.mark.parametrize("filled", [False, True])
def test_writing_spoils_nothing(filled: bool) -> None:
    torch.manual_seed(0)
    program = ofx.trace(Writing(filled).eval(), (torch.randn(3, 4),))
    batch, at = ofx.Batch(program.args), places(program)
    frontier = Frontier(program, batch)
    for g in sorted(ofx.group(program).free, key=lambda g: at[g.name]):
        gates = {g.name: torch.ones(g.extent).index_fill_(0, torch.tensor([1]), 0.0)}
        frontier.advance(at[g.name])
        with torch.no_grad():
            (wanted,) = Runner(program, gates=gates)(batch)
        for _ in range(2):
            (found,) = frontier.onward(Functional(program, gates=gates))
            assert torch.equal(found, wanted)
    assert frontier.moves is not filled

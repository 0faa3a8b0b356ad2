"""Which tensors count as layers: blocks, U-shaped nets, branches, models without blocks; and how to choose others."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import optin_fx as ofx
from optin_fx.errors import ScoreError
from optin_fx.layers import chosen_layers, later_layers, layers_of
from optin_fx.testing import published


class Step(nn.Module):
    """Two convolutions and a sum."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(width, hidden, 3, padding=1), nn.Conv2d(hidden, width, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.conv2(self.conv1(x).relu())


class Shaped(nn.Module):
    """A U: two steps down, two up, with a skip connection."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 1)
        self.down = nn.ModuleList([Step(4, 5), Step(4, 6)])
        self.up = nn.ModuleList([Step(4, 7), Step(4, 8)])
        self.head = nn.Conv2d(4, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a = self.down[0](self.stem(x))
        b = self.down[1](nn.functional.avg_pool2d(a, 2))
        c = self.up[0](nn.functional.interpolate(b, scale_factor=2.0) + a)
        return self.head(self.up[1](c))


class Branches(nn.Module):
    """Two towers that meet in the head: neither can change the other."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.ModuleList([self._block(5), self._block(6)]), nn.ModuleList([self._block(7)])
        self.head = nn.Linear(8, 2)

    def _block(self, hidden: int) -> nn.Module:
        return nn.Sequential(nn.Linear(4, hidden), nn.ReLU(), nn.Linear(hidden, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        left, right = x, x
        for block in self.left:
            left = left + block(left)
        for block in self.right:
            right = right + block(right)
        return self.head(torch.cat([left, right], -1)).mean(1)


def test_a_u_shaped_net_has_the_steps_of_both_arms() -> None:
    program = ofx.trace(Shaped(), (torch.randn(2, 3, 8, 8),))
    assert [layer.name for layer in layers_of(program)] == ["down.0", "down.1", "up.0", "up.1"]
    assert {layer.feature for layer in layers_of(program)} == {1}
    reach = later_layers(program, layers_of(program))
    assert [reach[f"{name}.conv1:filter"] for name in ("down.0", "down.1", "up.0", "up.1")] == [4, 3, 2, 1]
    x = torch.randn(3, 3, 8, 8)
    scores = ofx.score(program, "trajectory", data=[x])
    assert all(scores[name].max() > 0 for name in scores)


def test_only_layers_that_the_graph_can_reach_count() -> None:
    program = ofx.trace(Branches(), (torch.randn(2, 5, 4),))
    layers = layers_of(program)
    assert [layer.name for layer in layers] == ["left.0", "left.1", "right.0"]
    reach = later_layers(program, layers)
    assert {name: reach[name] for name in ("left.0.0:neuron", "left.1.0:neuron", "right.0.0:neuron")} == {
        "left.0.0:neuron": 2, "left.1.0:neuron": 1, "right.0.0:neuron": 1
    }  # fmt: skip
    x = torch.randn(3, 5, 4)
    own, other = (ofx.score(program, "trajectory", data=[x], layers=text, lam=0.0)["right.0.0:neuron"] for text in ("right.*", "left.*"))
    assert own.max() > 0
    assert other.max() == 0


def test_published_models_have_their_blocks() -> None:
    assert [layer.name for layer in layers_of(published.program("minilm", brief=True))] == ["encoder.layer.0", "encoder.layer.1"]


def test_layers_by_block_module_and_node() -> None:
    program = ofx.trace(Shaped(), (torch.randn(2, 3, 8, 8),))
    last = layers_of(program)[-1]
    assert [layer.name for layer in chosen_layers(program, ["up.*", "down.1"])] == ["down.1", "up.0", "up.1"]
    assert chosen_layers(program, [last.node]) == (last,)
    assert [layer.name for layer in chosen_layers(program, ["stem"])] == ["stem"]
    assert [layer.node for layer in chosen_layers(program, ["relu*"])][:1] == ["relu"]
    assert chosen_layers(program, [], "last") == (last,)
    with pytest.raises(ScoreError) as caught:
        chosen_layers(program, ["stage9"])
    assert caught.value.what == "no layer, module or node fits 'stage9'"
    assert caught.value.at == "the layers are down.0, down.1, up.0, up.1, ..."

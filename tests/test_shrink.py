"""Finding the fault: a rule that promises too much is named, and the plan that shows it becomes small."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from optin_fx import rulebook
from optin_fx.groups import group
from optin_fx.plan import make_plan, random_plan
from optin_fx.program import Program, trace
from optin_fx.shrink import bisect, minimise

softmax = torch.ops.aten.softmax.int


class Blocks(nn.Module):
    """Three hidden layers; the second one's entries see each other."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(5, 6), nn.Linear(6, 7), nn.Linear(7, 8)])
        self.head = nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.layers[0](x).relu()
        x = self.layers[1](x).softmax(-1)
        return self.head(self.layers[2](x).relu())


class Cropped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(5, 6), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(F.hardtanh(self.up(x)).reshape(x.shape[0], 6))


@pytest.fixture
def wrong_softmax() -> Iterator[None]:
    """A rule that forgets that a softmax's entries see each other."""
    right = rulebook.find(softmax)
    assert right is not None
    rulebook.forget(softmax)
    rulebook.rule(softmax, mapping="... -> ...")
    yield
    rulebook._RULES[softmax] = right


@pytest.fixture
def wrong_reshape() -> Iterator[None]:
    """A rule that forgets the sizes that are written in the call."""
    op = torch.ops.aten.reshape.default
    right = rulebook.find(op)
    assert right is not None
    rulebook.forget(op)
    rulebook.rule(op, mapping=right.mapping)
    yield
    rulebook._RULES[op] = right


def traced(model: nn.Module) -> Program:
    return trace(model, (torch.randn(3, 5),))


class Folded(nn.Module):
    """Heads folded into a dynamic batch, inputs by keyword in a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(5, 12), nn.Linear(12, 3)

    def forward(self, *, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        x = inputs["x"]
        heads = self.up(x).view(x.shape[0], 3, 4).flatten(0, 1).relu()
        return self.down(heads.reshape(x.shape[0], 12))


def test_heads_in_the_batch_and_nested_inputs() -> None:
    program = trace(Folded(), (), {"inputs": {"x": torch.randn(3, 5)}})
    plan = random_plan(program, 0.4)
    assert plan.kept
    assert bisect(program, plan) is None


def test_a_right_program_has_no_disagreement() -> None:
    program = traced(Blocks())
    plan = random_plan(program, 0.5)
    assert bisect(program, plan) is None
    assert minimise(program, plan) is plan


@pytest.mark.usefixtures("wrong_softmax")
def test_the_wrong_rule_is_named() -> None:
    program = traced(Blocks())
    plan = random_plan(program, 0.5, seed=1)
    assert len(plan.kept) == 3
    found = bisect(program, plan)
    assert found is not None
    assert (found.node, found.op, found.line) == ("softmax", "aten.softmax.int", "... -> ...")
    assert found.what.startswith("relative difference ")
    assert found.source.startswith("test_shrink.py:")
    assert str(found).startswith("%softmax (aten.softmax.int, rule ... -> ...): relative difference ")


@pytest.mark.usefixtures("wrong_softmax")
def test_only_the_guilty_group_is_left() -> None:
    program = traced(Blocks())
    small = minimise(program, random_plan(program, 0.5, seed=1))
    (name,) = small.kept
    assert group(program)[name].members == (("layers.1.weight", 0), ("layers.1.bias", 0), ("layers.2.weight", 1))
    assert len(small.kept[name]) == 6, "one unit of seven is enough"
    assert bisect(program, small) is not None


@pytest.mark.usefixtures("wrong_reshape")
def test_a_node_that_cannot_run_is_named() -> None:
    program = traced(Cropped())
    found = bisect(program, make_plan(program, {"up:neuron": [0, 1, 2]}))
    assert found is not None
    assert found.node == "reshape"
    assert "invalid for input of size 9" in found.what

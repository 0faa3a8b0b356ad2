"""What grouping finds: listings that a person can read and agree with, names, reasons, questions."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import optin_fx as ofx
from optin_fx.analysis import Analysis, analyse
from optin_fx.errors import PlanError
from optin_fx.groups import Groups, group, groups_of
from optin_fx.program import trace
from optin_fx.testing import published

GOLDEN = Path(__file__).parent / "golden"


@pytest.mark.parametrize("name", published.MODELS)
def test_golden_listing(name: str, request: pytest.FixtureRequest) -> None:
    """`pytest tests/test_groups.py --regenerate` writes the listings anew; read their diff before you commit it."""
    path = GOLDEN / f"groups_{name}.txt"
    found = str(group(published.program(name, brief=True))) + "\n"
    if request.config.getoption("--regenerate"):
        path.write_text(found)
    assert found == path.read_text()


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.norm, self.fc2 = nn.Linear(4, 8), nn.LayerNorm(6), nn.Linear(8, 6)
        self.head = nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.fc2(self.fc1(x).relu())))


@pytest.fixture(scope="module")
def small() -> Groups:
    return group(trace(Small(), (torch.randn(2, 4),)))


def test_names_kinds_and_members(small: Groups) -> None:
    (free,) = small.free
    assert str(free) == "fc1:neuron (neuron, 8 units)"
    assert free.members == (("fc1.weight", 0), ("fc1.bias", 0), ("fc2.weight", 1))
    assert small["fc1:neuron"] is free
    assert "fc1:neuron" in small
    assert {g.name for g in small.pinned} == {"extent", "fc2:neuron", "head:neuron"} or len(small.pinned) == 3
    assert len(small) == len(list(small)) == 1 + len(small.pinned)


def test_a_reason_names_the_node_and_the_source_line(small: Groups) -> None:
    normed = next(g for g in small.pinned if ("norm.weight", 0) in g.members)
    line = Small.forward.__code__.co_firstlineno + 1
    assert normed.pinned == f"normalised together (layer_norm) at %layer_norm, test_groups.py:{line}"


def test_explain(small: Groups) -> None:
    assert small.explain("fc1:neuron") == (
        "fc1:neuron: 8 units of kind neuron, may shrink; its units go from all of these at once\n"
        "    fc1.weight[0]\n    fc1.bias[0]\n    fc2.weight[1]"
    )
    assert "must stay: normalised together" in small.explain("norm.weight")


@pytest.mark.parametrize("ask", [lambda g: g["nothing"], lambda g: g.explain("nothing")])
def test_questions_about_nothing(small: Groups, ask: object) -> None:
    with pytest.raises(PlanError) as error:
        ask(small)  # type: ignore[operator]
    assert str(error.value).endswith("'nothing'\n  fix print(groups) lists the names")


def test_the_coupling_graph(small: Groups) -> None:
    graph = small.graph()
    assert graph.nodes["fc1:neuron"]["extent"] == 8
    assert sorted(graph.neighbors("fc1:neuron")) == ["fc1.bias", "fc1.weight", "fc2.weight"]
    assert graph.edges["fc1:neuron", "fc2.weight"]["dim"] == 1


def test_an_op_without_a_rule_is_listed() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(3, 4), nn.Linear(5, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.down(torch.cdist(self.up(x), torch.ones(5, 4)))

    found = group(trace(Net(), (torch.randn(2, 3, 3),)))
    assert not found.free
    assert str(found).endswith("no rule for aten.cdist.default (1 nodes): its axes stay")
    assert any("no rule for aten.cdist.default at %cdist" in str(g.pinned) for g in found.pinned)


class Deep(nn.Module):
    def __init__(self, depth: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.ModuleList([nn.Linear(12, 36), nn.Linear(12, 12), nn.Linear(12, 20), nn.Linear(20, 12)]) for _ in range(depth)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for qkv, out, up, down in self.layers:
            q, k, v = qkv(x).view(x.shape[0], 5, 3, 3, 4).permute(2, 0, 3, 1, 4).unbind(0)
            x = x + out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape[0], 5, 12))
            x = x + down(up(x).relu())
        return x


def test_time_grows_linearly() -> None:
    def best(depth: int) -> float:
        program = trace(Deep(depth), (torch.randn(2, 5, 12),))
        analyse(program)
        times = []
        for _ in range(7):
            start = time.process_time()
            groups_of(Analysis(program).run())
            times.append(time.process_time() - start)
        return min(times)

    assert best(32) <= 2.5 * 4 * best(8)


def test_the_user_sees_groups_through_the_package() -> None:
    assert ofx.group is group


class WrittenOutGelu(nn.Module):
    """The tanh GELU as older models spell it: a sum inside the activation, and one around the block."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.up, self.down, self.head = nn.Linear(4, 6), nn.Linear(6, 8), nn.Linear(8, 6), nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        h = self.up(x)
        h = h * 0.5 * (1 + torch.tanh(0.7978845608 * (h + 0.044715 * h.pow(3))))
        return self.head(x + self.down(h))


def test_a_sum_inside_an_activation_is_no_residual_stream() -> None:
    kinds = {g.name.split(":")[0]: g.kind for g in group(trace(WrittenOutGelu(), (torch.randn(3, 4),))).free}
    assert kinds == {"residual": "residual", "up": "neuron"}

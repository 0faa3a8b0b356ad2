"""Rows that nothing reads: left out wherever that is exact, and nowhere else."""

from __future__ import annotations

import random
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from random_graphs import RandomNet
from torch import Tensor, nn
from torch.nn import functional as F

import optin_fx as ofx
from optin_fx import closed_loop
from optin_fx.budget import parse_budget
from optin_fx.errors import PipelineError
from optin_fx.latency_table import Curve, LatencyTable
from optin_fx.narrowing import narrow
from optin_fx.pipeline import State, find_pass, parse_pipeline
from optin_fx.report import Ratio

TOKENS, WIDTH, HEADS = 12, 16, 4


class Layer(nn.Module):
    """A transformer layer; `causal` leaves it to the kernel which keys a query sees."""

    def __init__(self, causal: bool = False) -> None:
        super().__init__()
        self.causal = causal
        self.query, self.key, self.value, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)
        self.first, self.second = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).view(*x.shape[:2], -1, WIDTH // HEADS).transpose(1, 2) for layer in (self.query, self.key, self.value))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal).transpose(1, 2).reshape(*x.shape[:2], -1)
        x = self.first(x + self.out(mixed))
        return self.second(x + self.down(F.gelu(self.up(x))))


class Encoder(nn.Module):
    """Three layers, and a head on what `read` takes from the last one."""

    def __init__(self, read: Callable[[Tensor], Any], causal: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(*(Layer(causal) for _ in range(3)))
        self.head = nn.Linear(WIDTH, 5)
        self.read = read
        self.eval()

    def forward(self, x: Tensor) -> Any:
        found = self.read(self.layers(x))
        return (self.head(found[0]), *found[1:]) if isinstance(found, tuple) else self.head(found)


def traced(model: nn.Module, dynamic: bool = False) -> ofx.Program:
    batch = torch.export.Dim("batch")
    shapes = ({0: batch, 1: torch.export.Dim("tokens", min=4)} if dynamic else {0: batch},)
    return ofx.trace(model, (torch.randn(2, TOKENS, WIDTH),), dynamic_shapes=shapes)


def share(program: ofx.Program) -> float:
    """Of the FLOPs, what is left; outputs, groups and the batch dim are what they were."""
    small = narrow(program)
    x = torch.randn(5, *program.args[0].shape[1:], dtype=program.args[0].dtype)
    for ours, theirs in zip(torch.utils._pytree.tree_leaves(small(x)), torch.utils._pytree.tree_leaves(program(x)), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)
    assert [(g.name, g.extent) for g in ofx.group(small).free] == [(g.name, g.extent) for g in ofx.group(program).free]
    return ofx.cost(small).flops / ofx.cost(program).flops


ALL_BUT_KEYS_AND_VALUES = 10 / 12
"""Of a layer's twelve products of WIDTH x WIDTH per token, two are its keys' and values'."""


@pytest.mark.parametrize(
    ("read", "rows"),
    [
        (lambda x: x[:, 0], 1),
        (lambda x: x[:, -1], 1),
        (lambda x: x[:, 2:5].mean(1), 3),
        (lambda x: x[:, -2:].flatten(1)[:, :WIDTH], 2),
        (lambda x: x[:, 0] + x[:, 3], 4),
        (lambda x: torch.cat([x[:, :1], x[:, 1:2]], 1), 2),
        (lambda x: x[:, 2:][:, 0], 1),
        (lambda x: x.transpose(0, 1)[0], 1),
    ],
    ids=["first", "last", "a range", "from the end", "two", "joined", "nested", "turned"],
)
def test_only_what_is_read_is_computed(read: Callable[[Tensor], Tensor], rows: int) -> None:
    program = traced(Encoder(read))
    weights = 3 * 12 * WIDTH * WIDTH * TOKENS
    attention = 3 * 2 * WIDTH * TOKENS * TOKENS
    left_out = (1 - rows / TOKENS) * (weights * ALL_BUT_KEYS_AND_VALUES + attention) / 3
    expected = 1 - 2 * left_out * len(program.args[0]) / ofx.cost(program).flops
    assert share(program) == pytest.approx(expected, abs=0.02)


@pytest.mark.parametrize(
    "read",
    [
        lambda x: x.mean(1),
        lambda x: x[:, 1:].mean(1),
        lambda x: x,
        lambda x: (x[:, 0], x),
        lambda x: x.softmax(1)[:, 0],
        lambda x: x.cumsum(1)[:, 0],
        lambda x: x.flip(1)[:, 0],
        lambda x: x[0],
        lambda x: x[:, 0] * x.shape[1] + x.amax(1),
    ],
    ids=["mean", "nearly all", "all", "also returned", "softmax", "cumsum", "turned round", "batch", "maximum"],
)
def test_what_all_rows_go_into_stays(read: Callable[[Tensor], Any]) -> None:
    program = traced(Encoder(read))
    assert narrow(program) is program


def test_a_causal_kernel_is_told_by_places() -> None:
    """The first query may be alone: it sees the first key, whatever comes behind it; the last one, alone, would see but the first key."""
    first, last = (share(traced(Encoder(read, causal=True))) for read in (lambda x: x[:, 0], lambda x: x[:, -1]))
    assert first < last < 1  # behind the attention, the last one is alone, too


def test_a_dynamic_length() -> None:
    program = traced(Encoder(lambda x: x[:, 0]), dynamic=True)
    small = narrow(program)
    assert ofx.cost(small).flops < 0.8 * ofx.cost(program).flops
    for tokens in (5, 12, 30):
        x = torch.randn(3, tokens, WIDTH)
        assert torch.allclose(small(x), program(x), atol=1e-5)
    assert narrow(traced(Encoder(lambda x: x[:, 1:3].mean(1)), dynamic=True)).fingerprint  # a range may end early: nothing is assumed


def test_what_is_written_into_stays() -> None:
    class Writes(Encoder):
        def forward(self, x: Tensor) -> Tensor:
            found = self.layers(x)
            found[:, 1:2].add_(1.0)
            return self.head(found[:, 0:2].mean(1))

    program = traced(Writes(lambda x: x))
    assert torch.allclose(narrow(program)(program.args[0]), program(program.args[0]), atol=1e-6)


def test_images() -> None:
    """Rows and columns of pixels are no rows of a layer: a convolution sees its neighbours, a pointwise one does not."""

    class Corner(nn.Module):
        def __init__(self, kernel: int) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 8, kernel, padding=kernel // 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x).relu()[:, :, 0, 0]

    for kernel in (1, 3):
        program = ofx.trace(Corner(kernel), (torch.randn(2, 3, 8, 8),))
        x = torch.randn(4, 3, 8, 8)
        assert torch.allclose(narrow(program)(x), program(x), atol=1e-5)


class Reads(nn.Module):
    """A random network whose heads read one place."""

    def __init__(self, net: RandomNet, place: int) -> None:
        super().__init__()
        self.net, self.place = net, place

    def forward(self, x: Tensor) -> Tensor:
        net = self.net
        values = [x]
        for step, layers in zip(net.steps, net.layers, strict=True):
            found = step.apply(layers, *(values[i] for i in step.inputs))
            values.extend(found if isinstance(found, (tuple, list)) else [found])
        ends = [values[i].flatten(2).transpose(1, 2) if values[i].dim() == 4 else values[i] for i in net.ends]
        return torch.stack([head(end)[:, self.place] for head, end in zip(net.heads, ends, strict=True)]).sum(0)


def test_random_networks_compute_what_they_did() -> None:
    moved = 0
    for seed in range(40):
        torch.manual_seed(seed)
        draw = random.Random(seed)
        net = RandomNet(draw.randint, draw.randint(2, 9))
        program = ofx.trace(Reads(net, seed % 4), (net.example,))
        small = narrow(program)
        x = torch.randn_like(net.example)
        assert torch.allclose(small(x), program(x), rtol=1e-9, atol=1e-9), f"seed {seed}\n{net}"
        moved += small is not program
    assert moved > 12


def test_it_is_made_once() -> None:
    program = traced(Encoder(lambda x: x[:, 0]))
    small = narrow(program)
    assert narrow(program) is small
    assert narrow(small) is small
    assert small is not program


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return Encoder(lambda x: x[:, 0])


@pytest.fixture(scope="module")
def data() -> list[Tensor]:
    return [torch.randn(8, TOKENS, WIDTH, generator=torch.Generator().manual_seed(i)) for i in range(6)]


@pytest.mark.parametrize("steps", [1, 2])
def test_a_budget_counts_on_it(model: nn.Module, data: list[Tensor], steps: int) -> None:
    shapes = ({0: torch.export.Dim("batch")},)
    found = {
        on: ofx.prune(model, (data[0][:2],), dynamic_shapes=shapes, data=data, budget="flops <= 50%", narrow=on, steps=steps)
        for on in (True, False)
    }
    whole = ofx.cost(traced(model)).flops
    for result in found.values():
        assert ofx.cost(result.dense).flops == result.report.before.flops == whole
        assert 0.47 * whole < result.report.after.flops <= 0.5 * whole
        assert result.report.agreement.equal
    assert found[True].plan.predicted["flops"] == found[True].report.after.flops


@pytest.mark.parametrize("steps", [1, 2])
def test_what_it_saves_is_spent_on_units(model: nn.Module, data: list[Tensor], steps: int) -> None:
    """By one search: the trial's plans of all rows and of those that are left may come from different tries."""
    given = {"data": data, "budget": "flops <= 50%", "search": "rank", "steps": steps}
    with_it, without = (ofx.prune(model, (data[0][:2],), narrow=on, **given).plan.kept for on in (True, False))
    assert sum(map(len, with_it.values())) > sum(map(len, without.values()))


def test_a_plan_that_counts_on_it_is_carried_out_so(model: nn.Module, data: list[Tensor]) -> None:
    result = ofx.prune(model, (data[0][:2],), data=data, compensate=False)
    again = ofx.rewrite(result.dense, ofx.Plan.from_json(result.plan.to_json()))
    assert ofx.cost(again).flops == result.report.after.flops
    assert torch.allclose(again(data[0]), result.program(data[0]), atol=1e-6)


def test_the_module_that_was_pruned_is_cut_to_the_same(data: list[Tensor]) -> None:
    model = Encoder(lambda x: x[:, 0])
    result = ofx.prune(model, (data[0][:2],), data=data)
    result.apply_to(model)
    with torch.no_grad():
        assert torch.allclose(model(data[0]), result.program(data[0]), atol=1e-5)


def test_a_search_that_counts_on_it_needs_it(model: nn.Module, data: list[Tensor]) -> None:
    search = find_pass("rank{narrowed=True}", "search")
    with pytest.raises(PipelineError, match="narrowing is off"):
        ofx.prune(model, (data[0],), data=data, score="magnitude", search=search, compensate="none", narrow=False)


def test_as_a_pass(model: nn.Module, data: list[Tensor]) -> None:
    text = "score-magnitude | search-rank{budget=flops <= 50%, narrowed=True} | rewrite-slice | narrow-rows"
    program = traced(model)
    state = parse_pipeline(text).run(State(program))
    assert state.small is not None
    assert ofx.cost(state.small).flops <= 0.5 * ofx.cost(program).flops
    assert ofx.verify(program, state.plan).equal


def test_a_latency_is_measured_on_the_narrowed_program(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that goes by FLOPs: the closed loop ends on the budget, with more units than it takes where all rows are computed."""
    program = traced(Encoder(lambda x: x[:, 0]))
    asked = []

    def clock(programs: dict[str, ofx.Program], **_: object) -> Any:
        share = ofx.cost(programs["small"]).flops / ofx.cost(programs["dense"]).flops
        asked.append(share)
        return SimpleNamespace(ratio=lambda name: Ratio("dense", name, 1, 1 / share, 1 / share, 1 / share))

    monkeypatch.setattr(closed_loop, "measure", clock)
    budget = parse_budget("latency <= 60% @ eager:cpu")
    groups = ofx.group(program).free
    curves = {g.name: Curve((1, g.extent), (1 / g.extent / len(groups), 1 / len(groups)), (0.0, 0.0)) for g in groups}
    tables = {"eager:cpu": LatencyTable("eager:cpu", 1.0, curves)}
    kept = {}
    for narrowed in (True, False):
        searching = find_pass("rank", "search", budget=str(budget), narrowed=narrowed, align=1)
        state = State(program, scores=ofx.score(program, "magnitude"))
        plan = closed_loop.search_by_latency(state, searching, budget, tables=tables).plan
        assert plan is not None
        assert 0.57 <= asked[-1] <= 0.6
        kept[narrowed] = sum(len(units) - plan.extents[name] for name, units in plan.kept.items())
    assert kept[True] > kept[False]

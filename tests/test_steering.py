"""What a user says about widths is what happens: through `search`, through `prune`, on the command line; and nothing is said in vain."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import optin_fx as ofx
from optin_fx.cli.application import run
from optin_fx.errors import BudgetError, PipelineError
from optin_fx.steering import as_widths, bounds_of


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(24)
        self.qkv, self.out = nn.Linear(24, 3 * 32), nn.Linear(32, 24)
        self.mlp = nn.Sequential(nn.Linear(24, 96), nn.GELU(), nn.Linear(96, 24))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(self.norm(x)).view(x.shape[0], 5, 3, 8, 4).permute(2, 0, 3, 1, 4).unbind(0)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape[0], 5, 32))
        return x + self.mlp(self.norm(x))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.blocks, self.head = nn.Linear(6, 24), nn.ModuleList([Block(), Block(), Block()]), nn.Linear(24, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(1))


def make() -> tuple[nn.Module, tuple[torch.Tensor]]:
    torch.manual_seed(0)
    return Net(), (torch.randn(2, 5, 6),)


@pytest.fixture(scope="module")
def program() -> ofx.Program:
    return ofx.trace(*make())


def widths(program: ofx.Program, plan: ofx.Plan) -> dict[str, int]:
    return {g.name: len(plan.kept.get(g.name, range(g.extent))) for g in ofx.group(program).free}


def searched(program: ofx.Program, budget: str = "flops <= 50%", **options: Any) -> dict[str, int]:
    return widths(program, ofx.search(program, ofx.score(program, "random", seed=3), budget, **options))


MLP, HEADS = [f"blocks.{i}.mlp.0:neuron" for i in range(3)], [f"blocks.{i}.qkv:head" for i in range(3)]


def test_the_names(program: ofx.Program) -> None:
    assert set(MLP + HEADS) <= {g.name for g in ofx.group(program).free}


@pytest.mark.parametrize("pattern", ["blocks.1", "*blocks.1*", "blocks.1.mlp", "blocks.1.mlp.2.weight", "blocks.1.mlp.0:neuron"])
def test_frozen_modules_keep_their_shapes(program: ofx.Program, pattern: str) -> None:
    found = searched(program, "flops <= 70%", freeze=(pattern,))
    assert found[MLP[1]] == 96
    assert found[MLP[0]] < 96
    small = ofx.rewrite(program, ofx.search(program, ofx.score(program, "random"), "flops <= 70%", freeze=("blocks.1",)))
    for name, tensor in program.tensors.items():
        if name.startswith("blocks.1."):
            assert small.tensors[name].shape == tensor.shape


def test_least_and_most(program: ofx.Program) -> None:
    found = searched(program, widths={"*.mlp.*": (40, 60), "blocks.2.mlp": (50, 50), "*:head": (3, None)})
    assert 40 <= found[MLP[0]] <= 60
    assert 40 <= found[MLP[1]] <= 60
    assert found[MLP[2]] == 50
    assert all(found[head] >= 3 for head in HEADS)


def test_most_holds_where_the_budget_asks_for_nothing(program: ofx.Program) -> None:
    found = searched(program, "flops <= 100%", widths={"blocks.0.mlp": (None, 30)})
    assert found[MLP[0]] == 30
    assert found[MLP[1]] == 96


@pytest.mark.parametrize("method", ["rank", "kwon"])
def test_multiples(program: ofx.Program, method: str) -> None:
    found = searched(program, "flops <= 45%", align=16, method=method)
    assert all(found[name] % 16 == 0 for name in MLP)
    assert any(found[name] < 96 for name in MLP)
    assert any(found[name] not in (0, 8) for name in HEADS), "heads are counted, not aligned"


def test_multiples_and_bounds_together(program: ofx.Program) -> None:
    found = searched(program, align=16, widths={"*.mlp": (20, 60)})
    assert {found[name] for name in MLP} <= {32, 48}


def test_kinds(program: ofx.Program) -> None:
    only = searched(program, "flops <= 80%", kinds=("head",))
    assert all(only[name] == 96 for name in MLP)
    assert any(only[name] < 8 for name in HEADS)
    assert searched(program, "flops <= 80%", kinds=("head-dim",))[MLP[0]] == 96


def test_whole_heads_alone_meet_a_budget(program: ofx.Program) -> None:
    plan = ofx.search(program, ofx.score(program, "random"), "flops <= 70%", kinds=("head",))
    assert 0.6 * ofx.cost(program).flops < ofx.cost(program, plan).flops <= 0.7 * ofx.cost(program).flops


@pytest.mark.parametrize("options", [{"freeze": ("encoder",)}, {"widths": {"blocks.7": (1, 2)}}, {"widths": {"*:head-dim": (1, 2)}}])
def test_nothing_is_said_in_vain(program: ofx.Program, options: dict[str, Any]) -> None:
    with pytest.raises(BudgetError, match="is about no group that may be pruned"):
        searched(program, **options)


def test_bounds_that_cannot_be() -> None:
    with pytest.raises(PipelineError, match="the least of 'a' is above its most, 9 > 4"):
        ofx.search(ofx.trace(*make()), ofx.score(ofx.trace(*make()), "random"), widths={"a": (9, 4)})
    with pytest.raises(ValueError, match="is not"):
        as_widths([("a", 1)])


def test_narrowest_bounds_win() -> None:
    group = ofx.Group("a.b:neuron", "neuron", 100, (("a.b.weight", 0),))
    assert bounds_of(group, as_widths({"a": (10, 90), "a.b": (20, 95)}), 1) == (20, 90)
    assert bounds_of(group, as_widths({"a": (200, None)}), 1) == (100, 100)
    assert bounds_of(group, as_widths({"a": (None, 30)}), 8) == (1, 24)
    assert bounds_of(group, as_widths({"a": (30, 30)}), 8) == (30, 30)


def test_through_prune() -> None:
    model, args = make()
    result = ofx.prune(
        model, args, score="magnitude", budget="flops <= 60%", compensate=False, freeze=("blocks.0",), widths={"blocks.1.mlp": (48, 48)}
    )
    found = widths(result.dense, result.plan)
    assert (found[MLP[0]], found[MLP[1]]) == (96, 48)
    assert "widths" in result.plan.provenance["search"]


def test_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = ofx.trace(*make()).save(tmp_path / "net.pt2")
    options = ["--freeze", "blocks.0", "--width", "blocks.1.mlp=48:48", "--width", "blocks.2.mlp=:64", "--align", "16", "--kinds", "neuron"]
    assert run(["search", str(path), "--score", "magnitude", "--budget", "flops <= 85%", "--json", *options]) == 0
    kept = {name: len(units) for name, units in json.loads(capsys.readouterr().out)["kept"].items()}
    assert MLP[0] not in kept
    assert kept[MLP[1]] == 48
    assert kept[MLP[2]] in (16, 32, 48, 64)
    assert set(kept) <= set(MLP)
    out = tmp_path / "out"
    given = ["--score", "magnitude", "--compensate", "none", "--data", "random", "--out", str(out), *options]
    assert run(["prune", str(path), "--budget", "flops <= 85%", *given]) == 0
    assert len(ofx.Plan.from_json((out / "plan.json").read_text()).kept[MLP[1]]) == 48
    assert run(["search", str(path), "--score", "magnitude", "--width", "blocks"]) == 2
    assert "cannot read the width 'blocks'" in capsys.readouterr().err


def test_explained_and_allowed_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(ofx.trace(*make()).save(tmp_path / "net.pt2"))
    assert run(["group", path, "--explain", "blocks.0.mlp"]) == 0
    said = capsys.readouterr().out
    assert "blocks.0.mlp.0:neuron: 96 units of kind neuron, may shrink" in said
    assert "must stay: normalised together (layer_norm)" in said
    assert "blocks.1.mlp.0:neuron" not in said
    assert run(["group", path, "--allow", "normalised", "--json"]) == 0
    stream = next(g for g in json.loads(capsys.readouterr().out) if g["kind"] == "residual")
    assert stream["pinned"] is None
    assert "layer_norm" in stream["allowed"]
    plan, small = str(tmp_path / "plan.json"), str(tmp_path / "small.pt2")
    options = ["--score", "random", "--budget", "flops <= 60%", "--kinds", "residual"]
    assert run(["search", path, *options, "--allow", "normalised", "--out", plan]) == 0
    assert run(["rewrite", path, "--plan", plan, "--out", small]) == 0
    assert ofx.load(small)(torch.randn(3, 5, 6)).shape == (3, 4)
    capsys.readouterr()
    assert run(["verify", path, "--plan", plan]) == 0
    assert "INEXACT, as allowed" in capsys.readouterr().out
    assert run(["search", path, *options]) == 2

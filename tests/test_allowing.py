"""Norms over a width: means and lengths are exact, LayerNorm is opt-in and said to be inexact."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import optin_fx as ofx
from optin_fx.errors import PlanError


class RmsBlock(nn.Module):
    """A residual stream under RMSNorm, written out or as one op."""

    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.stem, self.up, self.down, self.head = nn.Linear(5, 12), nn.Linear(12, 20), nn.Linear(20, 12), nn.Linear(12, 3)
        self.weight, self.fused = nn.Parameter(torch.rand(12) + 0.5), fused

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        if self.fused:
            y = F.rms_norm(x, (12,), self.weight, 1e-3)
        else:
            y = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-3) * self.weight
        return self.head(x + self.down(self.up(y).relu()))


class ByHand(nn.Module):
    """A LayerNorm of single steps, global response normalisation, and unit length: means and lengths over hidden channels."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.up, self.down, self.kind = nn.Linear(5, 12), nn.Linear(12, 3), kind

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.up(x)
        if self.kind == "steps":
            centred = y - y.mean(-1, keepdim=True)
            y = centred / (centred.square().mean(-1, keepdim=True) + 1e-3).sqrt()
        elif self.kind == "response":
            length = y.norm(p=2, dim=1, keepdim=True)
            y = y * length / (length.mean(-1, keepdim=True) + 1e-3) + y
        else:
            y = F.normalize(y, dim=-1)
        return self.down(y)


@pytest.mark.parametrize("kind", ["steps", "response", "length"])
def test_means_and_lengths_are_exact(kind: str) -> None:
    program = ofx.trace(ByHand(kind).double(), (torch.randn(2, 4, 5).double(),))
    (group,) = ofx.group(program).free
    assert group.extent == 12
    for seed in range(3):
        found = ofx.verify(program, ofx.random_plan(program, 0.4, seed=seed), strict=True)
        assert found.max_rel < 1e-12
        assert found.moved > 1e-3
    small = ofx.rewrite(program, ofx.make_plan(program, {group.name: [1, 4]}))
    assert small(torch.randn(7, 4, 5).double()).shape == (7, 4, 3)


@pytest.mark.parametrize("fused", [False, True])
def test_a_residual_stream_under_rms_norm(fused: bool) -> None:
    program = ofx.trace(RmsBlock(fused).double(), (torch.randn(2, 5).double(),))
    assert {g.kind for g in ofx.group(program).free} == {"neuron"}
    allowed = program.allowing("averaged")
    stream = next(g for g in ofx.group(allowed).free if g.kind == "residual")
    assert stream == next(g for g in ofx.group(program, allow=("averaged",)).free if g.kind == "residual")
    assert stream.allowed is not None
    assert "allowed: " in str(ofx.group(allowed))
    plan = ofx.make_plan(allowed, {stream.name: [0, 2, 3, 7, 11]})
    found = ofx.verify(allowed, plan, strict=True)
    assert found.max_rel < 1e-12
    assert found.inexact is None
    assert found.moved > 1e-3
    with pytest.raises(PlanError, match="cannot shrink"):
        ofx.rewrite(program, plan)
    assert ofx.rewrite(allowed, plan)(torch.randn(9, 5).double()).shape == (9, 3)


class Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Linear(5, 12), nn.LayerNorm(12)
        self.groups, self.head = nn.GroupNorm(3, 12), nn.Linear(12, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        return self.head(self.norm(x)) + self.head(self.groups(x)) + x.var(-1, keepdim=True)


def test_a_normalised_width_is_opt_in_and_inexact() -> None:
    torch.manual_seed(0)
    program = ofx.trace(Normed().double(), (torch.randn(2, 5).double(),))
    assert not [g for g in ofx.group(program).free if g.extent == 4]
    allowed = program.allowing("normalised")
    group = next(g for g in ofx.group(allowed).free if g.extent == 4)
    assert "normalised together (group_norm)" in str(group.allowed)
    assert "free only because it is allowed" in ofx.group(allowed).explain(group.name)
    found = ofx.verify(allowed, ofx.make_plan(allowed, {group.name: [0, 3]}), strict=True)
    assert found.max_rel < 1e-12, "cut as it was meant"
    assert found.inexact is not None
    assert found.inexact > 1e-3, "and not what zeroing alone would give"
    assert "INEXACT, as allowed" in str(found)


def test_an_output_stays_whatever_is_allowed() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8))
    program = ofx.trace(model, (torch.randn(2, 4),)).allowing("normalised", "averaged")
    assert not ofx.group(program).free


def test_an_unknown_code() -> None:
    with pytest.raises(PlanError) as error:
        ofx.trace(nn.Linear(2, 2), (torch.randn(2, 2),)).allowing("everything")
    assert str(error.value) == "nothing is pinned as 'everything'\n  fix allow 'normalised' or 'averaged'"


def test_higher_order_ops_say_why() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 6), nn.Linear(6, 5), nn.Linear(5, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.a(x)
            y = torch.cond(y.sum() > 0, lambda t: t.sin(), lambda t: t.cos(), (y,))
            with torch.autocast("cpu", dtype=torch.bfloat16), torch.autocast("cuda", dtype=torch.float16):
                z = self.b(y)
            return self.c(z.float())

    text = str(ofx.group(ofx.trace(Net(), (torch.randn(2, 4),))))
    assert "read or made in branches that data choose between (torch.cond)" in text
    assert "computed under autocast, whose casts are no part of the graph" in text

"""Regions under `torch.autocast` are written out with the casts that they make, to the bit; or they stay, and say so."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import torch
from torch import nn

import optin_fx as ofx


class Mixed(nn.Module):
    """Ops that autocast narrows, leaves and widens, a region in it that is off, and a concatenation of two dtypes."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down, self.off, self.out = nn.Linear(4, 32), nn.Linear(32, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.conv, self.norm = nn.Conv1d(5, 8, 3, padding=1), nn.LayerNorm(6)
        self.back = nn.Conv1d(8, 5, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = self.down(nn.functional.gelu(self.up(x)))
            y = y + self.back(self.conv(y).relu())
            mixed = nn.functional.scaled_dot_product_attention(y, y, y)
            with torch.autocast("cpu", enabled=False):
                plain = self.off(mixed.float())
            y = torch.cat([self.norm(plain), mixed], 1)
        return self.out(y.float())


@pytest.fixture(scope="module")
def mixed() -> tuple[nn.Module, ofx.Program]:
    torch.manual_seed(0)
    model = Mixed().eval()
    return model, ofx.trace(model, (torch.randn(3, 5, 4),))


def test_a_region_computes_what_it_did(mixed: tuple[nn.Module, ofx.Program]) -> None:
    model, program = mixed
    x = torch.randn(7, 5, 4)
    with torch.no_grad():
        assert torch.equal(program.graph_module(x), model(x))
    assert not [node for node in program.graph_module.graph.nodes if "autocast" in str(node.target)]
    narrow = [node for node in program.graph_module.graph.nodes if node.op == "call_function" and _dtype(node) == torch.bfloat16]
    assert {str(node.target).split(".")[1] for node in narrow} >= {"to", "linear", "gelu", "conv1d", "relu", "scaled_dot_product_attention"}


def test_what_it_touches_is_free(mixed: tuple[nn.Module, ofx.Program], tmp_path: Path) -> None:
    _, program = mixed
    free = {member for group in ofx.group(program).free for member in group.members}
    assert {("up.weight", 0), ("down.weight", 1), ("conv.weight", 0), ("back.weight", 1)} <= free
    for seed in range(3):
        plan = ofx.random_plan(program, seed=seed)
        agreement = ofx.verify(program, plan)
        assert agreement.max_rel < 1e-2
        assert agreement.tolerance == 1e-1  # of bfloat16, in which it computes
        assert agreement.moved > 3e-2
    small = ofx.rewrite(program, plan)
    again = ofx.load(small.save(tmp_path / "small.pt2"))
    x = torch.randn(4, 5, 4)
    torch.testing.assert_close(again(x), small(x))


class Within(nn.Module):
    """A context in a region under autocast, and ops after it."""

    def __init__(self, inside: Callable[[], AbstractContextManager[None]]) -> None:
        super().__init__()
        self.inside = inside
        self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = x.sin()
            with self.inside():
                y = self.a(y)
            y = y.cos()
        return self.b(y.float())


@pytest.mark.filterwarnings("ignore:User provided device_type of 'cuda'")
def test_autocast_of_another_device_in_it_leaves_it_as_it_is() -> None:
    """Off for that device, it is still on for this one."""
    program = ofx.trace(Within(lambda: torch.autocast("cuda", dtype=torch.float16)), (torch.randn(2, 4),))
    (group,) = [g for g in ofx.group(program) if ("b.weight", 1) in g.members]
    assert str(group.pinned).startswith("computed under autocast, whose casts are no part of the graph")


def test_what_export_lost_is_not_made_up() -> None:
    """Around `no_grad`, export records dtypes of an autocast that its program does not make: the program is what counts."""
    program = ofx.trace(Within(torch.no_grad), (torch.randn(2, 4),))
    x = torch.randn(5, 4)
    assert torch.equal(program.graph_module(x), program.exported.module()(x))
    assert ofx.verify(program, ofx.random_plan(program, seed=0))


def _dtype(node: torch.fx.Node) -> torch.dtype | None:
    value = node.meta.get("val")
    return value.dtype if isinstance(value, torch.Tensor) else None

"""The side-by-side bench: both tools are judged by the same rule, and the rule can say no."""

from __future__ import annotations

import bench_peers
import peer_runs
import pytest
import torch
from torch import nn

pytest.importorskip("torch_pruning")


class Plain(nn.Module):
    def __init__(self, norm: type[nn.Module] = nn.BatchNorm2d) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 6, 3), nn.Linear(6, 5)
        self.norm = nn.BatchNorm2d(8) if norm is nn.BatchNorm2d else nn.GroupNorm(1, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.b(self.norm(self.a(x)).relu()).relu().mean((2, 3)))


@pytest.mark.parametrize("tool", peer_runs.TOOLS)
def test_both_are_exact_on_a_plain_network(tool: str) -> None:
    torch.manual_seed(0)
    facts = peer_runs.TOOLS[tool](Plain().eval(), ((torch.randn(2, 3, 8, 8),), {}))
    assert facts["runs"]
    assert facts["error"] < 1e-5
    assert facts["params"] < 0.5


def test_a_pruned_norm_is_not_equal() -> None:
    torch.manual_seed(0)
    facts = peer_runs.torch_pruning(Plain(nn.GroupNorm).eval(), ((torch.randn(2, 3, 8, 8),), {}))
    assert facts["runs"]
    assert facts["error"] > 1e-3


def test_the_page_counts() -> None:
    good = {"params": 0.5, "seconds": 1.0, "megabytes": 3.0, "runs": True, "error": 1e-7}
    bad = {**good, "error": 0.5}
    found = {
        "one": {"optin-fx": good, "torch-pruning": bad},
        "two": {"optin-fx": good, "torch-pruning": {"failed": "ValueError: no | more"}},
        "three": {"optin-fx": good, "torch-pruning": {**good, "runs": False, "error": None, "reason": "RuntimeError: shapes"}},
    }
    text = bench_peers.page(found, "at test sizes")
    assert "* optin-fx: builds 3, runs 3, smaller and equal 3, of 3." in text
    assert "* torch-pruning: builds 2, runs 1, smaller and equal 0, of 3." in text
    assert "| two | yes | yes | yes (1e-07) | 50% | 1.0 | 3 | no: ValueError: no / more |" in text

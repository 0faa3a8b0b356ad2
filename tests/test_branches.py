"""Depth pruning: a branch without units disappears from the graph, and the result still equals the masked program."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import optin_fx as ofx
from optin_fx.data import batches_of
from optin_fx.errors import PlanError
from optin_fx.reconstruction import reconstruct


class PostNorm(nn.Module):
    """A feed-forward branch with dropout and layer scale in front of a LayerNorm, and an attention branch without biases."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.q, self.k, self.v = (nn.Linear(12, 12, bias=False) for _ in range(3))
        self.o = nn.Linear(12, 12, bias=False)
        self.fc1, self.fc2, self.norm = nn.Linear(12, 20), nn.Linear(20, 12), nn.LayerNorm(12)
        self.scale = nn.Parameter(torch.rand(12))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        heads = [f(x).unflatten(-1, (3, 4)).transpose(1, 2) for f in (self.q, self.k, self.v)]
        x = x + self.o(F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2))
        return self.norm(x + F.dropout(self.fc2(F.gelu(self.fc1(x))), 0.1, self.training) * self.scale)


class Convolutional(nn.Module):
    """A convolution, BatchNorm, in-place ReLU branch."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two = nn.Conv2d(6, 9, 3, padding=1), nn.Conv2d(9, 6, 3, padding=1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(9), nn.BatchNorm2d(6)
        for bn in (self.bn1, self.bn2):
            nn.init.normal_(bn.running_mean)
            nn.init.uniform_(bn.running_var, 0.5, 1.5)
            nn.init.normal_(bn.weight)
            nn.init.normal_(bn.bias)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.relu(x + self.bn2(self.two(self.relu(self.bn1(self.one(x))))))


def ops(program: ofx.Program) -> list[str]:
    return [str(n.target) for n in program.graph_module.graph.nodes if n.op == "call_function"]


def test_a_feed_forward_branch_leaves_its_constant() -> None:
    program = ofx.trace(PostNorm(), (torch.randn(2, 5, 12),))
    plan = ofx.make_plan(program, {"fc1:neuron": []})
    assert ofx.verify(program, plan, strict=True).moved > 1e-3
    small = ofx.rewrite(program, plan)
    assert not any("gelu" in op for op in ops(small))
    assert sum("linear" in op for op in ops(small)) == 4
    assert not any("fc1" in name or "fc2" in name for name in small.tensors)


def test_an_attention_branch_without_bias_leaves_nothing() -> None:
    program = ofx.trace(PostNorm(), (torch.randn(2, 5, 12),))
    (heads,) = (g for g in ofx.group(program).free if g.kind == "head")
    small = ofx.rewrite(program, ofx.make_plan(program, {heads.name: []}))
    assert not any("attention" in op or "softmax" in op for op in ops(small))
    assert sum("linear" in op for op in ops(small)) == 2
    assert ofx.verify(program, ofx.make_plan(program, {heads.name: [], "fc1:neuron": []}), strict=True)


def test_a_convolutional_branch_with_batch_norm() -> None:
    x = torch.randn(2, 6, 8, 8)
    program = ofx.trace(Convolutional(), (x,))
    plan = ofx.make_plan(program, {"one:filter": []})
    assert ofx.verify(program, plan, strict=True).moved > 1e-3
    small = ofx.rewrite(program, plan)
    assert not any("conv" in op for op in ops(small))
    assert small(torch.randn(3, 6, 8, 8)).shape == (3, 6, 8, 8)


def test_only_the_ends_of_residual_branches_are_removable() -> None:
    groups = ofx.group(ofx.trace(PostNorm(), (torch.randn(2, 5, 12),)))
    assert {g.kind: g.removable for g in groups.free} == {"head": True, "qk-dim": False, "v-dim": True, "neuron": True}
    program = ofx.trace(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)), (torch.rand(2, 4),))
    with pytest.raises(PlanError) as caught:
        ofx.make_plan(program, {"0:neuron": []})
    assert str(caught.value) == (
        "the plan keeps no unit of '0:neuron'\n  so  its consumers would have nothing to read\n  fix keep at least one unit"
    )


def test_a_branch_read_in_two_places_stays() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(4, 6), nn.Linear(6, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.two(self.one(x).relu())
            return x + y * y

    assert not any(g.removable for g in ofx.group(ofx.trace(Twice(), (torch.rand(2, 4),))).free)


def test_a_search_may_remove_branches_when_asked() -> None:
    program = ofx.trace(PostNorm(), (torch.randn(2, 5, 12),))
    values = {g.name: torch.full((g.extent,), 1.0 if g.kind == "head" else 1e-6) for g in ofx.group(program).free}
    scores = ofx.Scores(values, "made-up", program.fingerprint)
    assert ofx.search(program, scores, "flops <= 59.5%", min_keep=0.0).kept["fc1:neuron"] == ()
    assert len(ofx.search(program, scores, "flops <= 65%").kept["fc1:neuron"]) >= 1


def test_what_reads_on_after_a_removed_branch_is_refitted() -> None:
    """The dense program still runs the branch that the sliced one lost, and later layers make up for it."""

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = PostNorm(), PostNorm()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.second(self.first(x))

    data = [torch.randn(16, 5, 12) for _ in range(4)]
    program = ofx.trace(Two(), (data[0],))
    plan = ofx.make_plan(program, {"first.fc1:neuron": [], "second.fc1:neuron": range(10)})
    module, report = reconstruct(program, plan, batches_of(program, data, needed_for="test"))
    assert [item.weight for item in report] == ["second.fc2.weight"]
    with torch.no_grad():
        dense = program(data[0])
        assert (module(data[0]) - dense).square().mean() < (ofx.rewrite(program, plan)(data[0]) - dense).square().mean()

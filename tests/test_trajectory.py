"""The exact trajectory criterion against a naive reference: the whole dense model again for every unit."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from scipy.stats import spearmanr
from torch import nn

import optin_fx as ofx
from optin_fx.layers import layers_of
from optin_fx.outputs import output_terms


def naive(model: ofx.Program, x: torch.Tensor, name: str, unit: int, depth: str, lam: float) -> float:
    """Rewrite without the unit, run the whole of it, compare every layer's Gram matrices and the outputs."""

    def run(program: ofx.Program, nodes: list[str]) -> tuple[list[torch.Tensor], torch.Tensor]:
        kept: dict[str, torch.Tensor] = {}

        class Record(torch.fx.Interpreter):
            def run_node(self, n: torch.fx.Node) -> object:
                kept[n.name] = super().run_node(n)
                return kept[n.name]

        with torch.no_grad():
            output = Record(program.graph_module).run(x)
        return [kept[node] for node in nodes], output

    layers = layers_of(model) if depth != "last" else layers_of(model)[-1:]
    keep = [u for u in range(ofx.group(model)[name].extent) if u != unit]
    zeroed = ofx.mask(model, ofx.make_plan(model, {name: keep}))
    nodes = [layer.node for layer in layers]
    dense, out = run(model, nodes)
    gated, out_gated = run(zeroed, nodes)
    total = 0.0
    for layer, a, b in zip(layers, dense, gated, strict=True):
        left, right = (F.normalize(layer.rows(v), dim=-1) for v in (a, b))
        total += float((left @ left.mT - right @ right.mT).square().mean((1, 2)).mean())
    (term,) = output_terms(model)
    return total + lam * float(term.divergence(out_gated, out).mean())


class Encoder(nn.Module):
    """A small BERT-like encoder: post-norm attention and feed-forward blocks."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Linear(5, 12)
        self.layers = nn.ModuleList(
            nn.ModuleDict({"qkv": nn.Linear(12, 36), "o": nn.Linear(12, 12), "fc1": nn.Linear(12, 10), "fc2": nn.Linear(10, 12)})
            for _ in range(2)
        )
        self.head = nn.Linear(12, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x)
        for layer in self.layers:
            q, k, v = layer["qkv"](x).unflatten(-1, (3, 3, 4)).permute(2, 0, 3, 1, 4).unbind(0)
            x = F.layer_norm(x + layer["o"](F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)), (12,))
            x = F.layer_norm(x + layer["fc2"](F.gelu(layer["fc1"](x))), (12,))
        return self.head(x.mean(1))


class Convolutional(nn.Module):
    """A small ResNet-like network."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(6, 5, 3, padding=1), nn.BatchNorm2d(5), nn.ReLU(), nn.Conv2d(5, 6, 1)) for _ in range(2)
        )
        self.head = nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x).relu()
        for block in self.blocks:
            x = (x + block(x)).relu()
        return self.head(x.mean((2, 3)))


CASES = {"encoder": (Encoder, (4, 7, 5)), "convolutional": (Convolutional, (4, 3, 6, 6))}


@pytest.mark.parametrize("case", list(CASES))
@pytest.mark.parametrize("depth", ["sum", "last"])
def test_equal_to_the_naive_reference(case: str, depth: str) -> None:
    cls, shape = CASES[case]
    x = torch.randn(*shape, dtype=torch.float64)
    program = ofx.trace(cls().double(), (x,))
    scores = ofx.score(program, "trajectory", data=[x[:3], x[3:]], depth=depth, lam=0.7, candidates=4)
    for name in scores:
        for unit in (0, len(scores[name]) - 1):
            expected = naive(program, x, name, unit, depth, 0.7)
            assert float(scores[name][unit]) == pytest.approx(expected, rel=1e-5), (name, unit)


def test_stacking_changes_nothing() -> None:
    x = torch.randn(4, 7, 5)
    program = ofx.trace(Encoder(), (x,))
    one, many = (ofx.score(program, "trajectory", data=[x], candidates=c) for c in (1, 7))
    for name in one:
        assert torch.allclose(one[name], many[name], rtol=1e-3, atol=1e-9)


def test_the_sketch_ranks_as_the_exact_criterion_does() -> None:
    torch.manual_seed(0)
    x = torch.randn(64, 7, 5)
    program = ofx.trace(Encoder(), (x,))
    exact = ofx.score(program, "trajectory", data=[x], depth="sum")
    sketch = ofx.score(program, "trajectory-sketch", data=[x], depth="sum", probes=8)
    left = torch.cat([exact[name] for name in exact])
    right = torch.cat([sketch[name] for name in exact])
    assert spearmanr(left, right).statistic > 0.9

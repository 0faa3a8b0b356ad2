"""The exact trajectory criterion against a naive reference: the whole dense model again for every unit."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from scipy.stats import spearmanr
from torch import nn

import optin_fx as ofx
from optin_fx.candidates import bytes_per_sample, parts_of
from optin_fx.errors import PipelineError, ScoreError
from optin_fx.execution import execution
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
    total, moved = 0.0, 0
    for layer, a, b in zip(layers, dense, gated, strict=True):
        left, right = (F.normalize(layer.rows(v), dim=-1) for v in (a, b))
        moved += not torch.equal(left, right)
        total += float((left @ left.mT - right @ right.mT).square().mean((1, 2)).mean())
    (term,) = output_terms(model)
    if depth == "mean":
        total /= max(moved, 1)
    return total + lam * float(term.divergence(out_gated - out, out).mean())


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


class Vision(nn.Module):
    """A small ViT-like network: patches by a convolution, a class token, pre-norm blocks with explicit attention."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.patches = nn.Conv2d(1, 12, 3, stride=3)
        self.token, self.places = nn.Parameter(torch.randn(1, 1, 12)), nn.Parameter(torch.randn(1, 5, 12))
        self.blocks = nn.ModuleList(
            nn.ModuleDict({"q": nn.Linear(12, 12), "k": nn.Linear(12, 12), "v": nn.Linear(12, 12), "o": nn.Linear(12, 12),
                           "fc1": nn.Linear(12, 10), "fc2": nn.Linear(10, 12)})
            for _ in range(2)
        )  # fmt: skip
        self.head = nn.Linear(12, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.places
        for block in self.blocks:
            normed = F.layer_norm(x, (12,))
            q, k, v = (block[n](normed).unflatten(-1, (3, 4)).transpose(1, 2) for n in "qkv")
            x = x + block["o"](((q @ k.mT / 2).softmax(-1) @ v).transpose(1, 2).flatten(2))
            x = x + block["fc2"](F.gelu(block["fc1"](F.layer_norm(x, (12,)))))
        return self.head(x[:, 0])


class Embedding(Encoder):
    """Features as output: compared as directions."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x).tanh()


CASES = {
    "embedding": (Embedding, (4, 7, 5)),
    "bert": (Encoder, (4, 7, 5)),
    "vit": (Vision, (4, 1, 6, 6)),
    "resnet": (Convolutional, (4, 3, 6, 6)),
}


@pytest.mark.parametrize("case", list(CASES))
@pytest.mark.parametrize("depth", ["sum", "mean", "last"])
def test_equal_to_the_naive_reference(case: str, depth: str) -> None:
    cls, shape = CASES[case]
    x = torch.randn(*shape, dtype=torch.float64)
    program = ofx.trace(cls().double(), (x,))
    scores = ofx.score(program, "trajectory", data=[x[:3], x[3:]], depth=depth, lam=0.7, candidates=4)
    for name in scores:
        for unit in (0, len(scores[name]) - 1):
            expected = naive(program, x, name, unit, depth, 0.7)
            assert float(scores[name][unit]) == pytest.approx(expected, rel=1e-5), (name, unit)
    for name in scores:
        assert scores[name].max() > 0, name


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


def test_a_limit_on_memory_cuts_batches_and_changes_nothing() -> None:
    x = torch.randn(5, 7, 5, dtype=torch.float64)
    program = ofx.trace(Encoder().double(), (x,))
    whole = ofx.score(program, "trajectory", data=[x], tokens=4)
    with execution(memory_limit=2 * bytes_per_sample(program, ofx.Batch((x,)))):
        parts = parts_of(program, [ofx.Batch((x,))], 16)
        assert [(part.batch.args[0].shape[0], part.at_once) for part in parts] == [(2, 1), (2, 1), (1, 1)]
        cut = ofx.score(program, "trajectory", data=[x], tokens=4)
    with execution(memory_limit=15 * bytes_per_sample(program, ofx.Batch((x,)))):
        (part,) = parts_of(program, [ofx.Batch((x,))], 16)
        assert part.at_once == 3
    for name in whole:
        assert torch.allclose(whole[name], cut[name], rtol=1e-9)


def test_a_fixed_batch_is_neither_cut_nor_stacked() -> None:
    x = torch.randn(4, 7, 5)
    program = ofx.trace(Encoder(), (x,), dynamic_shapes={})
    assert [part.at_once for part in parts_of(program, [ofx.Batch((x,))], 16)] == [1]
    dynamic = ofx.score(ofx.trace(Encoder(), (x,)), "trajectory", data=[x])
    fixed = ofx.score(program, "trajectory", data=[x])
    for one, other in zip(dynamic.values.values(), fixed.values.values(), strict=True):
        assert torch.allclose(one, other, rtol=1e-4)


def test_bfloat16_products_keep_the_ranking() -> None:
    x = torch.randn(8, 7, 5)
    program = ofx.trace(Encoder(), (x,))
    full, half = (ofx.score(program, "trajectory", data=[x], precision=precision) for precision in ("full", "bf16"))
    for name in full:
        assert torch.allclose(full[name], half[name], rtol=0.05)
    assert any(not torch.equal(full[name], half[name]) for name in full)


def test_layers_can_be_chosen() -> None:
    x = torch.randn(4, 7, 5)
    program = ofx.trace(Encoder(), (x,))
    first, last, both = (
        ofx.score(program, "trajectory", data=[x], lam=0.0, layers=text) for text in ("layers.0", "layers.1", "layers.0+layers.1")
    )
    whole = ofx.score(program, "trajectory", data=[x], lam=0.0)
    for name in whole:
        assert torch.allclose(first[name] + last[name], whole[name])
        assert torch.equal(both[name], whole[name])
    assert float(first["layers.1.fc1:neuron"].max()) == 0  # it lies behind that layer
    with pytest.raises(ScoreError, match="no layer, module or node fits 'stages"):
        ofx.score(program, "trajectory", data=[x], layers="stages.*")


def test_a_temperature_softens_the_output_term() -> None:
    x = torch.randn(4, 7, 5, dtype=torch.float64)
    program = ofx.trace(Encoder().double(), (x,))
    name = "layers.0.fc1:neuron"
    found = ofx.score(program, "trajectory", data=[x], layers="layers.1", temperature=3.0)[name]
    without = ofx.score(program, "trajectory", data=[x], layers="layers.1", lam=0.0)[name]
    gated = ofx.mask(program, ofx.make_plan(program, {name: list(range(1, 10))}))
    p, q = (F.log_softmax(run(x) / 3.0, -1) for run in (program, gated))
    divergence = 9.0 * float((p.exp() * (p - q)).sum(-1).mean())
    assert float(found[0] - without[0]) == pytest.approx(divergence, rel=1e-6)


def agreement(scores: ofx.Scores, exact: ofx.Scores) -> float:
    left, right = (torch.cat([found[name] for name in exact]) for found in (scores, exact))
    return float(spearmanr(left, right).statistic)


def test_refining_near_the_cut_improves_the_agreement_with_exact_scores() -> None:
    x = torch.randn(6, 7, 5)
    program = ofx.trace(Encoder(), (x,))
    exact = ofx.score(program, "trajectory", data=[x[:3], x[3:]], depth="mean")
    sketch = ofx.score(program, "trajectory-sketch", data=[x[:3], x[3:]])
    some, all_ = (ofx.score(program, "refine", data=[x[:3], x[3:]], units=units, budget="flops <= 60%") for units in (12, None))
    assert agreement(sketch, exact) < agreement(some, exact) <= agreement(all_, exact)
    assert sum(int(torch.isclose(some[name], exact[name], rtol=1e-4).sum()) for name in exact) >= 12
    budget = "flops <= 60%"
    wanted = ofx.search(program, exact, budget=budget).kept
    found = {label: ofx.search(program, scores, budget=budget).kept for label, scores in (("sketch", sketch), ("refined", all_))}

    def different(kept: dict[str, tuple[int, ...]]) -> int:
        every = {name: range(len(exact[name])) for name in exact}  # a plan names only the groups that it cuts
        return sum(len(set(wanted.get(name, every[name])) ^ set(kept.get(name, every[name]))) for name in every)

    assert different(found["refined"]) <= different(found["sketch"])


def test_a_time_limit_of_nothing_leaves_the_sketch() -> None:
    x = torch.randn(6, 7, 5)
    program = ofx.trace(Encoder(), (x,))
    sketch, refined = ofx.score(program, "trajectory-sketch", data=[x]), ofx.score(program, "refine", data=[x], seconds=0)
    assert all(torch.equal(sketch[name], refined[name]) for name in sketch)


def test_the_sketch_looks_at_no_more_than_it_needs() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 4)).eval()
    data = [torch.randn(4, 6) for _ in range(5)]
    program = ofx.trace(model, (data[0],))

    def scored(batches: list[torch.Tensor], **options: int) -> torch.Tensor:
        return ofx.score(program, "trajectory-sketch", batches, **options)["0:neuron"]

    assert torch.equal(scored(data, most=7), scored(data[:2]))  # whole batches
    assert torch.equal(scored(data, most=100), scored(data))
    assert torch.equal(scored(data, most=7, samples=20), scored(data))  # what is asked for is done
    assert not torch.equal(scored(data, most=7), scored(data))
    with pytest.raises(PipelineError, match="most must be at least 1"):
        scored(data, most=0)

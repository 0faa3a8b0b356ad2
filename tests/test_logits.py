"""Attention logits whose dims were cut: exact again where the dims that stay can tell, closer where not, or left alone for a reason."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import optin_fx as ofx
from optin_fx import bilinear
from optin_fx.bilinear import BilinearMoments
from optin_fx.compensation import Compensation, Refitted
from optin_fx.data import batches_of
from optin_fx.heads import Heads
from optin_fx.reconstruction import reconstruct
from optin_fx.verifying import agreement


def _sides(samples: int) -> tuple[torch.Tensor, ...]:
    """Two pairs of sides, of which samples have very different scales, and their first dims."""
    generator = torch.Generator().manual_seed(0)

    def side(rows: int) -> torch.Tensor:
        mixing = torch.randn(2, 1, 6, 6, generator=generator, dtype=torch.float64)
        scale = torch.rand(2, samples, 1, 6, generator=generator, dtype=torch.float64) * 3
        return (torch.randn(2, samples, rows, 6, generator=generator, dtype=torch.float64) * scale) @ mixing

    u, v = side(7), side(5)
    return u[..., :4], v[..., :3], u, v


@pytest.mark.parametrize("ratio", [1e-9, 1e-2, 1.0])
@pytest.mark.parametrize("direct", [0, 640])
def test_the_solution_is_that_of_the_whole_least_squares_problem(ratio: float, direct: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bilinear, "DIRECT", direct)
    x, y, u, v = _sides(samples=9)
    moments = BilinearMoments()
    moments.add(*(side[:, :4] for side in (x, y, u, v)))
    moments.add(*(side[:, 4:] for side in (x, y, u, v)))
    prior = torch.eye(4, 3, dtype=torch.float64).expand(2, -1, -1)
    system = moments.system()
    found = system.solve(prior, ratio, prior)
    for pair in range(2):
        design = torch.stack([torch.kron(a, b) for a, b in zip(x[pair], y[pair], strict=True)]).reshape(-1, 12)  # of vec(A), row by row
        target = (u[pair] @ v[pair].mT).reshape(-1)
        normal = design.T @ design
        lam = ratio * normal.diagonal().mean() * torch.eye(12, dtype=torch.float64)
        expected = torch.linalg.solve(normal + lam, design.T @ target + lam @ prior[pair].reshape(-1)).reshape(4, 3)
        assert torch.allclose(found[pair], expected, rtol=1e-4, atol=1e-5)
        error = (design @ expected.reshape(-1) - target).square().sum()
        assert float(system.error(found)[pair]) == pytest.approx(float(error), rel=1e-6)


def test_heads_are_told_apart_by_their_features() -> None:
    features = torch.arange(12).reshape(1, 2, 1, 6).expand(3, 2, 5, 6)  # samples, heads, rows, width
    heads = Heads.of(features.reshape(6, 5, 6), samples=3)
    assert isinstance(heads, Heads)
    assert heads.features.tolist() == [list(range(6)), list(range(6, 12))]
    rows = torch.randn(6, 5, 4)
    assert torch.equal(heads.split(rows), rows.reshape(3, 2, 5, 4).transpose(0, 1))
    assert torch.equal(heads.spread(torch.tensor([7, 8]), 6), torch.tensor([7, 8, 7, 8, 7, 8]))
    grouped = Heads.of(features[:, [0, 0, 1, 1]].reshape(12, 5, 6), samples=3)  # two query heads read one key head
    assert isinstance(grouped, Heads)
    assert grouped.split(torch.arange(12.0).reshape(12, 1, 1)).flatten(1).tolist() == [[0, 1, 4, 5, 8, 9], [2, 3, 6, 7, 10, 11]]
    assert Heads.of(torch.stack([features[0, 0], features[0, 0] + 1]), samples=1) == "its heads share features"
    assert Heads.of(torch.arange(30).reshape(1, 5, 6), samples=1) == "its rows are made of different features"


class Attention(nn.Module):
    """One block of attention in one of the forms that models have it in, with logits large enough to matter.

    Args:
        rank: of every head's queries and keys.
    """

    HEADS, WIDTH, IN = 3, 8, 20

    def __init__(self, form: str, rank: int = 8) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.form = form
        total = self.HEADS * self.WIDTH
        self.q, self.k = nn.Linear(self.IN, total, bias=form != "no bias"), nn.Linear(self.IN, total)
        self.v, self.out = nn.Linear(self.IN, 12), nn.Linear(12, 5)
        self.register_buffer("gate", torch.rand(10, 1) + 0.5)
        if form == "conv":
            self.q = nn.Conv1d(self.IN, total, 1)
        for projection in (self.q, self.k):
            nn.init.normal_(projection.weight, std=0.4)
            self._limit(projection, rank)

    @torch.no_grad()
    def _limit(self, projection: nn.Linear | nn.Conv1d, rank: int) -> None:
        """Make the last features of every head mixtures of the first."""
        mixing = torch.randn(self.HEADS, self.WIDTH - rank, rank) * 0.6
        weight = projection.weight.view(self.HEADS, self.WIDTH, -1)
        weight[:, rank:] = mixing @ weight[:, :rank]
        if projection.bias is not None:
            nn.init.normal_(projection.bias)
            bias = projection.bias.view(self.HEADS, self.WIDTH, 1)
            bias[:, rank:] = mixing @ bias[:, :rank] + (0.0 if self.form.startswith("gated") else 1.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        k = self.k(x).unflatten(-1, (self.HEADS, self.WIDTH)).transpose(1, 2)
        if self.form == "conv":
            q = self.q(x.transpose(1, 2)).unflatten(1, (self.HEADS, self.WIDTH)).mT
        else:
            q = self.q(x).unflatten(-1, (self.HEADS, self.WIDTH)).transpose(1, 2)
        v = self.v(x).unflatten(-1, (self.HEADS, 4)).transpose(1, 2)
        if self.form.startswith("gated"):
            q = q * self.gate
        if self.form == "gated twice":
            k = k * self.gate
        if self.form == "one":
            k = q
        if self.form == "batched":
            q, k, v = (part.flatten(0, 1) for part in (q * 0.35, k, v))
            mixed = torch.bmm(torch.bmm(q, k.transpose(1, 2)).softmax(-1), v).unflatten(0, (-1, self.HEADS))
        elif self.form == "einsum":
            mixed = (torch.einsum("bhqd,bhkd->bhqk", q, k) / 2.8 - 1.0).softmax(-1) @ v
        elif self.form == "transposed":  # keys in rows
            mixed = (k @ q.transpose(-1, -2) * 0.3).softmax(-2).transpose(-1, -2) @ v
        elif self.form == "pooled":  # every token of every sample
            q, k, v = (part.transpose(0, 1).flatten(1, 2) for part in (q, k, v))
            mixed = ((q @ k.mT).softmax(-1) @ v).unflatten(1, (-1, 10)).transpose(0, 1)
        elif self.form == "sigmoid":  # no softmax: constants per row count
            mixed = (q @ k.transpose(-1, -2) * 0.3).sigmoid() @ v
        else:
            mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.out(mixed.transpose(1, 2).flatten(2))


def _refitted(
    model: nn.Module, kinds: tuple[str, ...] = ("qk-dim",), layers: str = "consumers", **options: Any
) -> tuple[list[Refitted], float, float]:
    """What became of the products when the first half of the dims stays, and how far the output is off without and with it."""
    model = model.eval()
    generator = torch.Generator().manual_seed(1)
    data = [torch.randn(8, 10, 20, generator=generator) for _ in range(9)]
    program = ofx.trace(model, (data[0],))
    cut = {g.name: range(g.extent // 2) for g in ofx.group(program).free if g.kind in kinds}
    assert cut
    plan = ofx.make_plan(program, cut)
    module, report = reconstruct(
        program, plan, batches_of(program, data[:8], needed_for="test"), Compensation(layers="consumers", **options)
    )
    with torch.no_grad():
        dense = program(data[8])
        return report, *(agreement(run(data[8]), dense).max_rel for run in (ofx.rewrite(program, plan), module))


FORMS = ["fused", "no bias", "batched", "einsum", "gated", "conv"]


@pytest.mark.parametrize(("form", "mode"), [*((form, "sequential") for form in FORMS), ("fused", "parallel")])
def test_what_the_other_dims_can_tell_is_restored(form: str, mode: str) -> None:
    report, without, refitted = _refitted(Attention(form, rank=4), mode=mode, ratios=(1e-10,))
    assert without > 0.05
    assert refitted < 1e-4
    assert [(item.weight, item.level) for item in report] == [("k.weight" if form == "gated" else "q.weight", "affine")]
    assert report[0].after < 1e-6 < 1e-2 < report[0].before


@pytest.mark.parametrize("form", ["fused", "transposed", "sigmoid"])
def test_logits_and_output_come_closer(form: str) -> None:
    (item,), without, refitted = _refitted(Attention(form))
    assert item.level == "affine"
    assert item.after < 0.97 * item.before
    assert refitted < without


@pytest.mark.parametrize("options", [{"logits": False}, {"level": "scale"}, {"level": "none"}])
def test_logits_can_be_left_as_they_are(options: dict[str, Any]) -> None:
    report, without, refitted = _refitted(Attention("fused", rank=4), **options)
    assert not report
    assert refitted == without


NOTES = {
    "gated twice": "what it reads comes out of mul, not straight from a projection",
    "pooled": "its matrices are not those of one sample each",
    "one": "its projection has other readers",
}


@pytest.mark.parametrize("form", list(NOTES))
def test_what_a_matrix_does_not_pass_is_left_alone_and_said_so(form: str) -> None:
    report, without, refitted = _refitted(Attention(form))
    assert [item.note for item in report] == [NOTES[form]]
    assert refitted == without


def test_rotary_embeddings_are_left_alone() -> None:
    from transformers import LlamaConfig, LlamaModel

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2}
    model = LlamaModel(LlamaConfig(vocab_size=50, use_cache=False, **sizes)).eval()
    data = [{"input_ids": torch.randint(0, 50, (4, 8))} for _ in range(3)]
    program = ofx.trace(model, (), data[0])
    pairs = next(g for g in ofx.group(program).free if g.kind == "rotary-pair")
    plan = ofx.make_plan(program, {pairs.name: range(pairs.extent // 2)})
    module, report = reconstruct(program, plan, batches_of(program, data, needed_for="test"), Compensation(layers="consumers"))
    assert [item.note for item in report] == ["what it reads comes out of add, not straight from a projection"]
    sliced = ofx.rewrite(program, plan)
    with torch.no_grad():
        assert torch.equal(module(**data[0])[0], sliced(**data[0])[0])


@pytest.mark.parametrize("kind", ["bert", "vit"])
def test_models_with_low_rank_logits_are_restored(kind: str) -> None:
    """Projections as transformers and timm have them: heads cut from separate layers, and from one fused one; and padding."""
    torch.manual_seed(0)
    if kind == "bert":
        from transformers import BertConfig, BertModel

        sizes = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 3, "vocab_size": 60}
        model: nn.Module = BertModel(BertConfig(**sizes), add_pooling_layer=False)
        projections = [(layer.attention.self.query, layer.attention.self.key) for layer in model.encoder.layer]
        masks = [(torch.arange(9)[None] < torch.randint(4, 10, (8, 1))).long() for _ in range(6)]
        data: list[Any] = [{"input_ids": torch.randint(0, 60, (8, 9)), "attention_mask": mask} for mask in masks]
        kinds = ("qk-dim",)
    else:
        import timm

        model = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, depth=2, embed_dim=24, num_heads=3, num_classes=5)
        projections = [(block.attn.qkv,) for block in model.blocks]
        data = [torch.randn(8, 3, 32, 32) for _ in range(6)]
        kinds = ("head-dim",)
    for layers in projections:
        for layer in layers:
            _low_rank(layer, heads=3 * (3 if kind == "vit" else 1))
    program = ofx.trace(model.eval(), (), data[0]) if kind == "bert" else ofx.trace(model.eval(), (data[0],))
    plan = ofx.make_plan(program, {g.name: range(g.extent // 2) for g in ofx.group(program).free if g.kind in kinds})
    module, report = reconstruct(
        program, plan, batches_of(program, data[:5], needed_for="test"), Compensation(layers="consumers", ratios=(1e-10,))
    )
    assert sum(item.before > 0.1 and item.after < 1e-6 for item in report) == (2 if kind == "bert" else 4)  # and the values' consumers
    sliced = ofx.rewrite(program, plan)
    with torch.no_grad():
        dense, without, refitted = (_first(run, data[5]) for run in (program, sliced, module))
    kept = data[5]["attention_mask"].bool() if kind == "bert" else slice(None)
    assert agreement(without[kept], dense[kept]).max_rel > 1e-2
    assert agreement(refitted[kept], dense[kept]).max_rel < 1e-4


@torch.no_grad()
def _low_rank(layer: nn.Linear, heads: int) -> None:
    """Make the second half of every head's features mixtures of the first, and the logits large."""
    weight, bias = layer.weight.view(heads, 8, -1), layer.bias.view(heads, 8, 1)
    weight.normal_(std=0.6)
    bias.normal_(std=0.3)
    mixing = torch.randn(heads, 4, 4) * 0.5
    weight[:, 4:], bias[:, 4:] = mixing @ weight[:, :4], mixing @ bias[:, :4] + 0.5


def _first(run: Any, batch: Any) -> torch.Tensor:
    found = run(**batch) if isinstance(batch, dict) else run(batch)
    return found if isinstance(found, torch.Tensor) else found[0]

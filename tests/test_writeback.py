"""Write-back: the user's own module, cut in place, computes what the smaller program computes; or nothing at all has changed."""

from __future__ import annotations

import copy
import inspect
import io
from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import optin_fx as ofx
from optin_fx.errors import WriteBackError
from optin_fx.rewriting import sliced
from optin_fx.verifying import agreement
from optin_fx.writeback import WriteBack, apply_to

CUT = ("head", "kv-group", "query-head", "neuron", "filter", "residual", "conv-group", "group-width", "norm-group")
FIX = "or stay with the smaller program (`pruned.module()` trains, saves and exports)"

IDS = torch.arange(14).reshape(2, 7) + 2
IMAGE = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
TEXT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, "vocab_size": 60}
PATCHES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, "image_size": 32, "patch_size": 8}


def hf(model: str, config: str, **options: Any) -> nn.Module:
    import transformers

    return getattr(transformers, model)(getattr(transformers, config)(**options))


def timm(name: str, **options: Any) -> nn.Module:
    import timm

    return timm.create_model(name, num_classes=10, **options)


def torchvision(name: str, **options: Any) -> nn.Module:
    import torchvision

    return getattr(torchvision.models, name)(num_classes=10, **options)


DISTIL = {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48, "vocab_size": 60}
TOKENS = {"bos_token_id": 0, "eos_token_id": 0}
SQUARE = {
    "n_embd": 16,
    "n_inner": 16,
    "n_layer": 4,
    "n_head": 4,
    "vocab_size": 60,
    "use_cache": False,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
MODELS: dict[str, tuple[Callable[[], nn.Module], torch.Tensor]] = {
    "bert": (lambda: hf("BertForSequenceClassification", "BertConfig", **TEXT), IDS),
    "bert-tied": (lambda: hf("BertForMaskedLM", "BertConfig", **TEXT), IDS),
    "bert-eager": (lambda: hf("BertModel", "BertConfig", **TEXT, attn_implementation="eager"), IDS),
    "distilbert": (lambda: hf("DistilBertForQuestionAnswering", "DistilBertConfig", **DISTIL), IDS),
    "roberta": (lambda: hf("RobertaModel", "RobertaConfig", **TEXT), IDS),
    "hf-vit": (lambda: hf("ViTForImageClassification", "ViTConfig", **PATCHES), IMAGE),
    "hf-deit": (lambda: hf("DeiTModel", "DeiTConfig", **PATCHES), IMAGE),
    "llama": (lambda: hf("LlamaForCausalLM", "LlamaConfig", **TEXT, num_key_value_heads=2, use_cache=False), IDS),
    # heads, head width, depth and every other width coincide, so that only the meaning of an attribute tells them apart
    "gpt2-square": (lambda: hf("GPT2LMHeadModel", "GPT2Config", **SQUARE), IDS),
    "timm-vit": (lambda: timm("vit_tiny_patch16_224", img_size=32, patch_size=8, depth=2, embed_dim=48), IMAGE),
    "timm-vit-square": (
        lambda: timm("vit_tiny_patch16_224", img_size=32, patch_size=16, depth=4, embed_dim=16, num_heads=4, mlp_ratio=1.0),
        IMAGE,
    ),
    "timm-deit": (lambda: timm("deit_tiny_distilled_patch16_224", img_size=32, patch_size=8, depth=2), IMAGE),
    "resnet": (lambda: torchvision("resnet18"), IMAGE),
    "resnext": (lambda: timm("resnext26ts"), IMAGE),
    "efficientnet": (lambda: timm("efficientnet_b0"), IMAGE),
    "mobilenet-v2": (lambda: torchvision("mobilenet_v2", inverted_residual_setting=[[1, 16, 1, 1], [6, 24, 2, 2], [6, 32, 2, 2]]), IMAGE),
    "mobilenet-v3": (lambda: timm("mobilenetv3_small_050"), IMAGE),
    "convnext": (lambda: timm("convnext_atto", depths=(1, 1, 2, 1), ls_init_value=1.0), IMAGE),
}


def build(name: str, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    model = MODELS[name][0]().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):  # statistics that are not zeros and ones, or nothing would be seen of them
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.normal_(module.running_mean, 0, 0.1)
            nn.init.uniform_(module.weight, 0.5, 1.5)
    return model


@cache
def traced(name: str) -> tuple[nn.Module, ofx.Program]:
    model = build(name)
    return model, ofx.trace(model, (MODELS[name][1],))


def both(name: str) -> tuple[nn.Module, ofx.Program]:
    """A dense model of one's own, and its program, which is traced only once."""
    model, program = traced(name)
    return copy.deepcopy(model), program


def half(program: ofx.Program, *kinds: str, seed: int = 0) -> ofx.Plan:
    """About half of the units of every group of these kinds, drawn at random."""
    generator = torch.Generator().manual_seed(seed)
    groups = [g for g in ofx.group(program).free if g.kind in (kinds or CUT)]
    assert groups
    return ofx.make_plan(program, {g.name: torch.randperm(g.extent, generator=generator)[: (g.extent + 1) // 2].tolist() for g in groups})


def facts(model: nn.Module) -> dict[str, Any]:
    """Everything that a write-back may touch."""
    found: dict[str, Any] = {
        n: (id(t), t.shape, t.detach().clone(), t.requires_grad) for n, t in model.named_parameters(remove_duplicate=False)
    }
    found |= {n: (id(t), t.shape, t.clone()) for n, t in model.named_buffers(remove_duplicate=False)}
    for path, module in model.named_modules():
        found |= {f"{path}.{k}()": v for k, v in vars(module).items() if isinstance(v, (int, float, str, tuple))}
        found |= {f"{path}.{k}[]": v is None for k, v in module._parameters.items()}
    return found


def same(before: dict[str, Any], after: dict[str, Any]) -> bool:
    def equal(a: Any, b: Any) -> bool:
        if isinstance(a, tuple) and any(isinstance(x, torch.Tensor) for x in a):
            return all(torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y for x, y in zip(a, b, strict=True))
        return bool(a == b)

    return before.keys() == after.keys() and all(equal(before[key], after[key]) for key in before)


@pytest.mark.parametrize("name", MODELS)
def test_the_module_equals_the_smaller_program(name: str) -> None:
    inputs = MODELS[name][1]
    model, program = both(name)
    before = sum(p.numel() for p in model.parameters())
    plan = half(program)
    small = sliced(program, plan)
    back = apply_to(model, program, plan)
    assert back.attributes
    assert back.agreement.equal
    assert back.agreement.moved > 1e-3
    assert sum(p.numel() for p in model.parameters()) < 0.9 * before
    with torch.no_grad():
        other = inputs.flip(0)
        assert agreement(model(other), small(other)).max_rel < 1e-5
    # there and back through files, with other weights to begin with, and without tracing
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    restored = ofx.restore(build(name, seed=1), ofx.Plan.from_json(back.plan.to_json()), torch.load(file))
    with torch.no_grad():
        assert agreement(restored.eval()(inputs), model(inputs)).max_abs == 0.0
    for path, module in model.named_modules():
        mine = {k: v for k, v in vars(module).items() if type(v) is int}
        assert mine == {k: v for k, v in vars(restored.get_submodule(path)).items() if type(v) is int}


def test_attributes_follow() -> None:
    model, program = both("bert")
    back = apply_to(model, program, half(program))
    own = model.bert.encoder.layer[0].attention.self
    assert (own.num_attention_heads, own.attention_head_size, own.all_head_size) == (2, 8, 16)
    assert (own.query.out_features, own.query.in_features) == (16, 32)
    assert dict(back.attributes)["bert.encoder.layer.1.intermediate.dense.out_features"] == (48, 24)
    assert str(back).splitlines()[0].startswith("23 tensors written; the module and the smaller program are equal: max abs 0.00e+00")
    assert "  bert.encoder.layer.0.attention.self.num_attention_heads: 4 -> 2" in str(back).splitlines()

    model, program = both("timm-vit-square")
    apply_to(model, program, half(program))
    own = model.blocks[0].attn
    assert (own.num_heads, own.head_dim, own.attn_dim, own.qkv.out_features, own.proj.in_features, own.proj.out_features) == (
        2,
        4,
        8,
        24,
        8,
        16,
    )

    model, program = both("resnext")
    apply_to(model, program, half(program))
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            assert module.weight.shape[:2] == (module.out_channels, module.in_channels // module.groups)
        if isinstance(module, nn.BatchNorm2d):
            assert module.num_features == len(module.weight) == len(module.running_mean)


def test_head_widths_keep_the_dense_softmax_scale() -> None:
    """Both head widths of BERT halve alike, which its one attribute can say; the dense scale is a number in the module."""
    model, program = both("bert")
    apply_to(model, program, half(program, "qk-dim", "v-dim"))
    own = model.bert.encoder.layer[1].attention.self
    assert (own.num_attention_heads, own.attention_head_size, own.all_head_size, own.scaling) == (4, 4, 16, 8**-0.5)


def test_rotary_pairs_and_their_buffer() -> None:
    model, program = both("llama")
    back = apply_to(model, program, half(program, "rotary-pair", "v-dim"))
    assert model.model.rotary_emb.inv_freq.shape == (2,)
    assert "model.rotary_emb.inv_freq" not in model.state_dict()
    fresh = ofx.restore(build("llama", seed=1), back.plan, model.state_dict())
    with torch.no_grad():
        assert agreement(fresh(IDS), model(IDS)).max_abs == 0.0


def test_kv_groups_and_query_heads_one_by_one() -> None:
    for kind in ("kv-group", "query-head"):
        model, program = both("llama")
        apply_to(model, program, half(program, kind))
        own = model.model.layers[0].self_attn
        assert own.num_key_value_groups == (2 if kind == "kv-group" else 1)
        assert (own.q_proj.out_features, own.k_proj.out_features) == ((16, 8) if kind == "kv-group" else (16, 16))


def test_ties_stay_and_training_goes_on() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.out = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(8, 3)
            self.two.weight = self.one.weight
            self.two.bias = nn.Parameter(self.one.bias.data)  # two parameters, one memory

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.out(self.one(x).relu() + self.two(x).sigmoid())

    model, x = Tied(), torch.randn(4, 6)
    model(x).sum().backward()
    weight, program = model.one.weight, ofx.trace(model, (x,))
    apply_to(model, program, half(program))
    assert model.one.weight is weight is model.two.weight
    assert (weight.shape, weight.grad) == ((4, 6), None)
    assert model.one.bias.data_ptr() == model.two.bias.data_ptr()
    assert model.training
    optimizer, losses = torch.optim.SGD(model.parameters(), 0.1), []
    for _ in range(5):
        optimizer.zero_grad()
        losses.append(loss := model(x).square().mean())
        loss.backward()
        optimizer.step()
    assert losses[-1] < losses[0]
    assert weight.data_ptr() not in {t.data_ptr() for t in program.tensors.values()}


def test_pruned_applies_its_refitted_weights_and_new_biases() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 24), nn.GELU(), nn.Linear(24, 12, bias=False), nn.ReLU(), nn.Linear(12, 4, bias=False)).eval()
    data = [torch.randn(64, 6) + 1 for _ in range(4)]
    pruned = ofx.prune(model, (data[0],), data=data, budget="flops <= 50%")
    dense = copy.deepcopy(model)
    back = pruned.apply_to(model)
    assert model[2].bias is not None
    assert "2.bias" in back.tensors
    assert model[0].out_features < 24
    with torch.no_grad():
        assert torch.allclose(model(data[1]), pruned.program(data[1]), atol=1e-6)
    assert not {p.data_ptr() for p in model.parameters()} & {t.data_ptr() for t in pruned.program.tensors.values()}
    # the plan of the search has no record, so the fresh model is traced
    fresh = nn.Sequential(nn.Linear(6, 24), nn.GELU(), nn.Linear(24, 12, bias=False), nn.ReLU(), nn.Linear(12, 4, bias=False)).eval()
    restored = ofx.restore(fresh, pruned.plan, model.state_dict(), (data[0],))
    assert torch.equal(restored(data[1]), model(data[1]))
    assert restored[0].out_features == model[0].out_features
    assert isinstance(ofx.restore(dense, back.plan, model.state_dict()), nn.Sequential)


# -- refusals ---------------------------------------------------------------------------------------------------------


def refused(model: nn.Module, program: ofx.Program, plan: ofx.Plan) -> str:
    before = facts(model)
    with pytest.raises(WriteBackError) as caught:
        apply_to(model, program, plan)
    assert same(before, facts(model))
    return str(caught.value)


class HardCoded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(6, 8), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(self.up(x).view(-1, 8).relu())


def line_of(function: Any, text: str) -> int:
    lines, first = inspect.getsourcelines(function)
    return first + next(i for i, line in enumerate(lines) if text in line)


def test_a_size_written_in_the_code_is_refused() -> None:
    model = nn.Sequential(HardCoded())
    program = ofx.trace(model, (torch.randn(3, 6),))
    message = refused(model, program, ofx.make_plan(program, {"0.up:neuron": [0, 1, 2, 5, 6]}))
    assert message == (
        "the code of a module cannot follow the plan\n"
        f"  at  0 (HardCoded), test_writeback.py:{line_of(HardCoded.forward, 'view')}: "
        "RuntimeError: shape '[-1, 8]' is invalid for input of size 15\n"
        "  so  nothing was changed\n"
        f"  fix leave 0.up:neuron out of the plan, {FIX}"
    )


class Padded(nn.Module):
    """Runs on with the wrong width: the only sign is another result."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(6, 8), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.up(x)
        return self.down(x / x.shape[-1] ** 0.5)


def test_a_width_read_from_a_tensor_is_refused() -> None:
    model = nn.Sequential(nn.Identity(), Padded())
    program = ofx.trace(model, (torch.randn(3, 6),))
    message = refused(model, program, ofx.make_plan(program, {"1.up:neuron": [0, 1, 2, 5]}))
    what, at, so, fix = message.splitlines()
    assert what.startswith("the module differs from the smaller program by ")
    assert what.endswith(" (relative)")
    assert (at, so) == ("  at  1.down (Linear)", "  so  nothing was changed")
    assert fix == f"  fix leave 1.up:neuron out of the plan, {FIX}"


def test_a_mean_over_the_channels_is_refused() -> None:
    """Response normalisation is exact in the graph, where the mean divides by the dense width; the module divides by what is left."""

    class Responses(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.grn, self.down = nn.Linear(6, 16), import_module("timm.layers.grn").GlobalResponseNorm(16), nn.Linear(16, 5)
            nn.init.normal_(self.grn.weight)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.down(self.grn(self.up(x)))

    model = Responses()
    program = ofx.trace(model, (torch.randn(2, 4, 4, 6),))
    plan = ofx.make_plan(program, {"up:neuron": [0, 3, 4, 8, 15]})
    assert ofx.verify(program, plan)
    what, at, so, fix = refused(model, program, plan).splitlines()
    assert what.startswith("the module differs from the smaller program by ")
    assert at == "  at  grn (GlobalResponseNorm) divides by the width that it finds (%mean)"
    assert (so, fix) == ("  so  nothing was changed", f"  fix leave up:neuron out of the plan, {FIX}")


class Faint(nn.Module):
    """A branch that is wrong when it is cut, and so weak that the output does not show it."""

    def __init__(self) -> None:
        super().__init__()
        self.branch = Padded()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, :4] + 1e-7 * self.branch(x)


def test_an_error_too_weak_to_show_in_the_outputs_is_refused() -> None:
    model = Faint()
    program = ofx.trace(model, (torch.randn(3, 6),))
    message = refused(model, program, ofx.make_plan(program, {"branch.up:neuron": [0, 1, 2, 5]}))
    assert message.splitlines()[:2] == ["the module differs from the smaller program inside", "  at  branch.down (Linear)"]


def test_multi_head_attention_is_refused() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(16, 4, batch_first=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.attention(x, x, x, need_weights=False)[0]

    model = Block()
    program = ofx.trace(model, (torch.randn(2, 5, 16),))
    message = refused(model, program, half(program, "head"))
    assert message.splitlines()[1].startswith("  at  attention (MultiheadAttention), activation.py:")
    assert message.splitlines()[2] == "  so  nothing was changed"


def test_a_scale_that_follows_the_width_is_refused() -> None:
    model, program = both("timm-vit")
    message = refused(model, program, half(program, "head-dim"))
    assert message.splitlines()[1:] == [
        "  at  blocks.0.attn (Attention) computes its softmax scale from the width that it finds (%scaled_dot_product_attention)",
        "  so  nothing was changed",
        f"  fix leave blocks.0.attn.qkv:head-dim out of the plan, {FIX}",
    ]


def test_branches_without_units_are_refused() -> None:
    model, program = both("bert")
    name = next(g.name for g in ofx.group(program).free if g.removable and g.kind == "neuron")
    assert refused(model, program, ofx.make_plan(program, {name: []})) == (
        f"the plan removes whole branches: {name}\n"
        "  so  the module's code would still run them; nothing was changed\n"
        "  fix keep at least one unit of each, or stay with the smaller program (`pruned.module()`)"
    )


def test_another_model_is_refused() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    program = ofx.trace(model, (torch.randn(2, 4),))
    plan = ofx.make_plan(program, {"0:neuron": [1, 2]})
    fix = "pass the module that was traced, unchanged since; for a state dict use ofx.restore(fresh_model, plan, state_dict)"
    tail = f"\n  so  what is cut here would not be what was pruned there; nothing was changed\n  fix {fix}"
    what = "the module is not the one that the program was traced from\n  at  "
    assert refused(nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2)), program, plan) == (
        f"{what}0.weight is [5, 4] in the module, [6, 4] in the program{tail}"
    )
    assert refused(nn.Linear(4, 2), program, plan) == f"{what}it has no parameter 0.weight{tail}"
    apply_to(model, program, plan)
    assert refused(model, program, plan) == f"{what}0.weight is [2, 4] in the module, [6, 4] in the program{tail}"
    fresh = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    assert refused(fresh, program, plan) == f"{what}0.weight has other values in the program{tail}"


def test_a_new_bias_without_a_place_is_refused() -> None:
    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up = nn.Linear(4, 12)
            self.weight = nn.Parameter(torch.randn(3, 12))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.linear(self.up(x).relu(), self.weight)

    torch.manual_seed(0)
    model, data = Bare(), [torch.randn(64, 4) + 1 for _ in range(4)]
    pruned = ofx.prune(model, (data[0],), data=data, budget="flops <= 60%")
    before = facts(model)
    with pytest.raises(WriteBackError) as caught:
        pruned.apply_to(model)
    assert same(before, facts(model))
    assert str(caught.value) == (
        "the smaller program has a parameter for which the module has no place\n"
        "  at  bias\n"
        "  so  the module cannot compute the same; nothing was changed\n"
        "  fix prune with compensate=False, or stay with the smaller program (`pruned.module()`)"
    )


@pytest.fixture
def written() -> tuple[nn.Module, WriteBack, ofx.Plan]:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    program = ofx.trace(model, (torch.randn(2, 4),))
    plan = ofx.make_plan(program, {"0:neuron": [1, 2]})
    return model, apply_to(model, program, plan), plan


def test_restore_refuses_what_does_not_belong_together(written: tuple[nn.Module, WriteBack, ofx.Plan]) -> None:
    model, back, plan = written
    state = model.state_dict()
    fresh = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    before = facts(fresh)
    with pytest.raises(WriteBackError) as caught:
        ofx.restore(fresh, plan, state)
    assert str(caught.value) == (
        "the plan does not say which attributes of the module follow it\n"
        "  so  the module cannot be restored without tracing it\n"
        "  fix save the plan that apply_to returns (`back.plan`), or pass the args and kwargs that the model was traced with"
    )
    frame = (
        "the model, the plan and the state dict do not belong together\n  at  {}\n  so  nothing was changed\n"
        "  fix build the model as it was before pruning, and use the plan and the state dict of one write-back"
    )
    wrong = [
        ({**state, "3.weight": torch.zeros(2)}, "3.weight is in the state dict, not in the model"),
        ({k: v for k, v in state.items() if k != "0.bias"}, "0.bias is in the model, not in the state dict"),
        ({**state, "2.bias": torch.zeros(3)}, "2.bias is [3] in the state dict, [2] in the dense model"),
    ]
    for bad, text in wrong:
        with pytest.raises(WriteBackError) as caught:
            ofx.restore(fresh, back.plan, bad)
        assert str(caught.value) == frame.format(text)
    other = nn.Sequential(nn.Linear(4, 7), nn.ReLU(), nn.Linear(7, 2))
    with pytest.raises(WriteBackError) as caught:
        ofx.restore(other, back.plan, state)
    assert str(caught.value) == frame.format("0.out_features is 7 in the model, was 6 when the plan was made")
    assert same(before, facts(fresh))
    assert other[0].out_features == 7

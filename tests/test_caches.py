"""Decoders as they ship: a returned key-value cache is state, so it shrinks with the heads; one that is passed in is the caller's."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import optin_fx as ofx

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def llama() -> torch.nn.Module:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        num_hidden_layers=2, hidden_size=64, num_attention_heads=4, num_key_value_heads=2, intermediate_size=96, vocab_size=100
    )
    return transformers.LlamaForCausalLM(config).eval()


IDS = torch.arange(16).reshape(2, 8)


@pytest.fixture(scope="module")
def program(llama: torch.nn.Module) -> ofx.Program:
    return ofx.trace(llama, (), {"input_ids": IDS})


def test_keys_and_values_are_free(llama: torch.nn.Module, program: ofx.Program) -> None:
    def kinds(program: ofx.Program) -> list[tuple[str, int]]:
        return sorted((group.kind, group.extent) for group in ofx.group(program).free)

    llama.config.use_cache = False
    try:
        without = kinds(ofx.trace(llama, (), {"input_ids": IDS}))
    finally:
        llama.config.use_cache = True
    assert program.state_outputs == {1, 2, 3, 4}
    assert kinds(program) == without
    assert {"kv-group", "v-dim", "rotary-pair"} <= {kind for kind, _ in without}


def test_the_cache_is_the_kept_slice(program: ofx.Program, tmp_path: Path) -> None:
    plan = ofx.random_plan(program, 0.5, seed=1)
    agreement = ofx.verify(program, plan, strict=True)
    assert agreement.moved > 1e-3
    small, masked = ofx.rewrite(program, plan), ofx.mask(program, plan)
    ours, theirs, dense = (p(input_ids=IDS).past_key_values.layers for p in (small, masked, program))
    assert isinstance(small(input_ids=IDS).past_key_values, transformers.DynamicCache)
    for mine, masks, whole in zip(ours, theirs, dense, strict=True):
        torch.testing.assert_close(mine.keys, masks.keys)
        torch.testing.assert_close(mine.values, masks.values)
        assert mine.keys.numel() < whole.keys.numel()
    back = ofx.load(small.save(tmp_path / "decoder.pt2"))
    assert torch.equal(back(input_ids=IDS).logits, small(input_ids=IDS).logits)


def test_every_layer_is_cut_in_its_own_way() -> None:
    """Keys and values of many layers, some of which keep the same units."""
    torch.manual_seed(0)
    config = transformers.GPT2Config(n_layer=4, n_embd=24, n_head=6, vocab_size=50, n_positions=16)
    program = ofx.trace(transformers.GPT2LMHeadModel(config), (), {"input_ids": IDS})
    for seed in range(4):
        assert ofx.verify(program, ofx.random_plan(program, 0.5, seed=seed), strict=True)


def test_a_cut_module_generates_with_its_narrow_cache(llama: torch.nn.Module, program: ofx.Program) -> None:
    """With the cache and without it the same tokens come out: what the module keeps between calls fits what it reads."""
    import copy

    kept = {g.name: list(range(1, g.extent)) for g in ofx.group(program).free if g.kind in ("kv-group", "neuron")}
    cut = copy.deepcopy(llama)
    from optin_fx.writeback import apply_to

    assert apply_to(cut, program, ofx.make_plan(program, kept))
    cached, plain = (cut.generate(IDS, max_new_tokens=5, do_sample=False, use_cache=use) for use in (True, False))
    assert cached.shape == (2, 13)
    assert torch.equal(cached, plain)


def test_a_cache_that_is_passed_in_keeps_its_width(llama: torch.nn.Module) -> None:
    past = llama(IDS).past_key_values
    program = ofx.trace(llama, (), {"input_ids": IDS[:, :1], "past_key_values": past}, {})
    groups = ofx.group(program)
    assert {g.kind for g in groups.free} == {"query-head", "neuron"}
    assert any("a cache that is passed in" in str(g.pinned) for g in groups if g.kind == "kv-group")
    assert ofx.verify(program, ofx.random_plan(program, 0.5, seed=0), strict=True)

"""Decoders trace as they ship, with a key-value cache among their outputs, and such programs are saved and loaded."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import optin_fx as ofx

transformers = pytest.importorskip("transformers")


def test_a_decoder_with_its_default_cache(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        num_hidden_layers=1, hidden_size=64, num_attention_heads=4, num_key_value_heads=2, intermediate_size=96, vocab_size=100
    )
    program = ofx.trace(transformers.LlamaForCausalLM(config), (), {"input_ids": torch.randint(0, 100, (2, 8))})
    groups = ofx.group(program)
    assert groups["model.layers.0.mlp:neuron"].pinned is None
    assert all("an output of the model" in str(g.pinned) for g in groups if g.kind == "kv-group")  # the cache shows keys and values
    assert ofx.verify(program, ofx.random_plan(program, 0.5, seed=0), strict=True)
    back = ofx.load(program.save(tmp_path / "decoder.pt2"))
    output = back(**back.kwargs)
    assert isinstance(output.past_key_values, transformers.DynamicCache)
    assert torch.equal(output.logits, program(**program.kwargs).logits)

"""Decoders and sequence-to-sequence models, from transformers, with the caches that they return by default."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from optin_fx.caches import register_caches
from optin_fx.testing.zoo.entry import Entry, Inputs, batch_and_sequence, batch_only, hf, text

# Six query heads on two key-value heads: three queries per group. Ten dims per head: five rotary pairs.
SMALL = {
    "vocab_size": 53,
    "hidden_size": 30,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 10,
    "intermediate_size": 44,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
# For classes whose head dim is hidden / heads.
SPLIT = {**{k: v for k, v in SMALL.items() if k != "head_dim"}, "hidden_size": 60}
# One kv head per query head.
MHA = {**{k: v for k, v in SMALL.items() if k not in ("head_dim", "num_key_value_heads")}, "hidden_size": 30, "num_attention_heads": 3}
REAL = {
    "vocab_size": 1000,
    "hidden_size": 2048,
    "num_hidden_layers": 2,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 8192,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
REAL_MHA = {
    **{k: v for k, v in REAL.items() if k != "num_key_value_heads"},
    "hidden_size": 768,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
}
NO_SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def with_caches(build: Callable[[bool], nn.Module]) -> Callable[[bool], nn.Module]:
    def make(is_small: bool) -> nn.Module:
        model = build(is_small)
        register_caches()
        return model

    return make


def decoder(
    name: str,
    model: str,
    config: str,
    *,
    base: tuple[Mapping[str, Any], Mapping[str, Any]] = (SMALL, REAL),
    small: Mapping[str, Any] | None = None,
    real: Mapping[str, Any] | None = None,
    mask: bool = True,
    dynamic: Callable[[], Any] | None = None,
    attention: str | None = None,
    length: int = 7,
    real_length: int = 64,
    note: str = "",
) -> Entry:
    inputs = ("input_ids", "attention_mask") if mask else ("input_ids",)
    return Entry(
        name,
        "decoders",
        f"transformers:{model}",
        with_caches(hf(model, config, {**base[0], **(small or {})}, {**base[1], **(real or {})}, attention=attention)),
        text(53, mask=mask, small=length, real=real_length),
        dynamic or batch_and_sequence(*inputs),
        note,
    )


def seq2seq(
    name: str,
    model: str,
    config: str,
    small: Mapping[str, Any],
    real: Mapping[str, Any],
    *,
    inputs: Callable[[bool], Inputs] | None = None,
    dynamic: Callable[[], Any] | None = None,
    note: str = "",
) -> Entry:
    names = ("input_ids", "decoder_input_ids")
    return Entry(
        name,
        "decoders",
        f"transformers:{model}",
        with_caches(hf(model, config, small, real)),
        inputs or text(53, names=names, mask=False),
        dynamic or batch_and_sequence(*names),
        note,
    )


BART = (
    {
        "vocab_size": 53,
        "d_model": 30,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "encoder_attention_heads": 3,
        "decoder_attention_heads": 3,
        "encoder_ffn_dim": 44,
        "decoder_ffn_dim": 46,
        "max_position_embeddings": 40,
        **NO_SPECIAL,
        "decoder_start_token_id": 2,
        "forced_eos_token_id": None,
    },
    {
        "vocab_size": 1000,
        "d_model": 768,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "encoder_attention_heads": 12,
        "decoder_attention_heads": 12,
        "encoder_ffn_dim": 3072,
        "decoder_ffn_dim": 3072,
        **NO_SPECIAL,
        "decoder_start_token_id": 2,
        "forced_eos_token_id": None,
    },
)
T5_SMALL = {
    "vocab_size": 53,
    "d_model": 28,
    "d_kv": 10,
    "d_ff": 44,
    "num_layers": 2,
    "num_heads": 3,
    "relative_attention_num_buckets": 8,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "decoder_start_token_id": 0,
}
T5_REAL = {
    "vocab_size": 1000,
    "d_model": 768,
    "d_kv": 64,
    "d_ff": 2048,
    "num_layers": 2,
    "num_heads": 12,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "decoder_start_token_id": 0,
}
# A grouped matmul asks for rows of a multiple of 16 bytes.
MOE = {"hidden_size": 36, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 20}
REAL_MOE = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 1024}


def _whisper_inputs(is_small: bool) -> Inputs:
    frames, mels, words = (24, 8, 53) if is_small else (3000, 80, 1000)
    return (), {"input_features": torch.randn(2, mels, frames), "decoder_input_ids": torch.randint(5, words, (2, 5))}


def _waves(is_small: bool) -> Inputs:
    return (), {"input_values": torch.randn(2, 420 if is_small else 16000)}


def _series(is_small: bool) -> Inputs:
    return (), {"past_values": torch.randn(2, 24 if is_small else 96, 3)}


def _series_shapes() -> Any:
    return batch_only("past_values")()


def _wave_shapes() -> Any:
    return batch_only("input_values")()


WAVE = (
    {
        "vocab_size": 11,
        "hidden_size": 30,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "intermediate_size": 44,
        "conv_dim": (14, 18),
        "conv_stride": (5, 2),
        "conv_kernel": (10, 3),
        "num_feat_extract_layers": 2,
        "num_conv_pos_embeddings": 4,
        "num_conv_pos_embedding_groups": 5,
        "num_labels": 5,
        "classifier_proj_size": 13,
        "apply_spec_augment": False,
    },
    {"num_hidden_layers": 2, "apply_spec_augment": False},
)

ENTRIES = (
    decoder(
        "gpt2",
        "GPT2LMHeadModel",
        "GPT2Config",
        base=(
            {"vocab_size": 53, "n_embd": 30, "n_layer": 2, "n_head": 3, "n_inner": 44, "n_positions": 64, **NO_SPECIAL},
            {"vocab_size": 1000, "n_layer": 2, **NO_SPECIAL},
        ),
        note="Conv1D, fused qkv by split, head tied to the embedding",
    ),
    decoder(
        "opt",
        "OPTForCausalLM",
        "OPTConfig",
        base=(MHA, REAL_MHA),
        small={"ffn_dim": 44, "word_embed_proj_dim": 14},
        real={"ffn_dim": 3072},
        note="word embedding narrower than the model",
    ),
    decoder(
        "gpt_neo",
        "GPTNeoForCausalLM",
        "GPTNeoConfig",
        base=(
            {
                "vocab_size": 53,
                "hidden_size": 30,
                "num_layers": 2,
                "attention_types": [[["global", "local"], 1]],
                "num_heads": 3,
                "intermediate_size": 44,
                "max_position_embeddings": 64,
                "window_size": 4,
                **NO_SPECIAL,
            },
            {
                "vocab_size": 1000,
                "hidden_size": 768,
                "num_layers": 2,
                "attention_types": [[["global", "local"], 1]],
                "num_heads": 12,
                **NO_SPECIAL,
            },
        ),
    ),
    decoder(
        "gpt_neox",
        "GPTNeoXForCausalLM",
        "GPTNeoXConfig",
        base=(MHA, REAL_MHA),
        small={"rotary_pct": 0.4, "partial_rotary_factor": 0.4},
        note="fused qkv per head, partial rotary, parallel residual",
    ),
    decoder(
        "gptj",
        "GPTJForCausalLM",
        "GPTJConfig",
        base=(
            {"vocab_size": 53, "n_embd": 30, "n_layer": 2, "n_head": 3, "n_inner": 44, "n_positions": 64, "rotary_dim": 4, **NO_SPECIAL},
            {"vocab_size": 1000, "n_embd": 1024, "n_layer": 2, "n_head": 16, "rotary_dim": 32, **NO_SPECIAL},
        ),
        note="interleaved partial rotary",
    ),
    decoder(
        "codegen",
        "CodeGenForCausalLM",
        "CodeGenConfig",
        base=(
            {
                "vocab_size": 53,
                "n_embd": 40,
                "n_layer": 2,
                "n_head": 4,
                "n_inner": 44,
                "n_positions": 64,
                "n_ctx": 64,
                "rotary_dim": 4,
                **NO_SPECIAL,
            },
            {"vocab_size": 1000, "n_embd": 1024, "n_layer": 2, "n_head": 16, "rotary_dim": 32, **NO_SPECIAL},
        ),
        note="fused qkv in four model-parallel shards, order q v k",
    ),
    decoder(
        "bloom",
        "BloomForCausalLM",
        "BloomConfig",
        base=(
            {"vocab_size": 53, "hidden_size": 30, "n_layer": 2, "n_head": 3, **NO_SPECIAL},
            {"vocab_size": 1000, "hidden_size": 1024, "n_layer": 2, "n_head": 16, **NO_SPECIAL},
        ),
        note="alibi, fused qkv interleaved per head",
    ),
    decoder(
        "falcon",
        "FalconForCausalLM",
        "FalconConfig",
        base=(
            {
                "vocab_size": 53,
                "hidden_size": 60,
                "num_hidden_layers": 2,
                "num_attention_heads": 6,
                "num_kv_heads": 2,
                "new_decoder_architecture": True,
                "ffn_hidden_size": 44,
                **NO_SPECIAL,
            },
            {
                "vocab_size": 1000,
                "hidden_size": 2048,
                "num_hidden_layers": 2,
                "num_attention_heads": 32,
                "num_kv_heads": 8,
                "new_decoder_architecture": True,
                **NO_SPECIAL,
            },
        ),
        note="fused grouped qkv",
    ),
    decoder(
        "falcon_mqa",
        "FalconForCausalLM",
        "FalconConfig",
        base=(
            {
                "vocab_size": 53,
                "hidden_size": 30,
                "num_hidden_layers": 2,
                "num_attention_heads": 3,
                "multi_query": True,
                "ffn_hidden_size": 44,
                **NO_SPECIAL,
            },
            {"vocab_size": 1000, "hidden_size": 1024, "num_hidden_layers": 2, "num_attention_heads": 16, "multi_query": True, **NO_SPECIAL},
        ),
        note="one kv head for all",
    ),
    decoder("llama", "LlamaForCausalLM", "LlamaConfig", note="GQA, rotary, gated FFN"),
    decoder("llama_eager", "LlamaForCausalLM", "LlamaConfig", attention="eager"),
    decoder("llama_classifier", "LlamaForSequenceClassification", "LlamaConfig", small={"num_labels": 5}),
    decoder("mistral", "MistralForCausalLM", "MistralConfig", small={"sliding_window": 4}),
    decoder("qwen2", "Qwen2ForCausalLM", "Qwen2Config", base=(SPLIT, REAL)),
    decoder("qwen3", "Qwen3ForCausalLM", "Qwen3Config", note="RMSNorm over each head of q and k"),
    decoder("gemma", "GemmaForCausalLM", "GemmaConfig", real={"head_dim": 256, "num_attention_heads": 8, "num_key_value_heads": 1}),
    decoder(
        "gemma2",
        "Gemma2ForCausalLM",
        "Gemma2Config",
        small={"query_pre_attn_scalar": 10, "sliding_window": 4},
        real={"head_dim": 256, "num_attention_heads": 8, "num_key_value_heads": 4},
        note="soft-capped logits, norms after the blocks",
    ),
    decoder(
        "gemma3",
        "Gemma3ForCausalLM",
        "Gemma3TextConfig",
        small={"query_pre_attn_scalar": 10, "sliding_window": 4},
        real={"head_dim": 256, "num_attention_heads": 8, "num_key_value_heads": 4},
    ),
    decoder("phi", "PhiForCausalLM", "PhiConfig", base=(SPLIT, REAL_MHA), small={"partial_rotary_factor": 0.4}),
    decoder("phi3", "Phi3ForCausalLM", "Phi3Config", base=(SPLIT, REAL), note="fused qkv and gate_up"),
    decoder("olmo2", "Olmo2ForCausalLM", "Olmo2Config", base=(SPLIT, REAL), note="RMSNorm over all heads of q and k together"),
    decoder("stablelm", "StableLmForCausalLM", "StableLmConfig", base=(SPLIT, REAL), small={"partial_rotary_factor": 0.4}),
    decoder("starcoder2", "Starcoder2ForCausalLM", "Starcoder2Config", base=(SPLIT, REAL)),
    decoder("cohere", "CohereForCausalLM", "CohereConfig", base=(SPLIT, REAL), note="interleaved rotary, parallel residual"),
    decoder("granite", "GraniteForCausalLM", "GraniteConfig", base=(SPLIT, REAL)),
    decoder("smollm3", "SmolLM3ForCausalLM", "SmolLM3Config", base=(SPLIT, REAL), note="some layers without rotary"),
    decoder("glm4", "Glm4ForCausalLM", "Glm4Config", small={"partial_rotary_factor": 0.4}, real={"head_dim": 64}),
    decoder(
        "persimmon",
        "PersimmonForCausalLM",
        "PersimmonConfig",
        base=(MHA, REAL_MHA),
        small={"partial_rotary_factor": 0.4},
        note="squared relu, LayerNorm on q and k",
    ),
    decoder("nemotron", "NemotronForCausalLM", "NemotronConfig", small={"partial_rotary_factor": 0.4}, real={"head_dim": 64}),
    decoder("helium", "HeliumForCausalLM", "HeliumConfig", base=(SPLIT, REAL), small={"head_dim": 10}, real={"head_dim": 64}),
    decoder("biogpt", "BioGptForCausalLM", "BioGptConfig", base=(MHA, REAL_MHA)),
    decoder(
        "xglm",
        "XGLMForCausalLM",
        "XGLMConfig",
        base=(
            {
                "vocab_size": 53,
                "d_model": 30,
                "ffn_dim": 44,
                "num_layers": 2,
                "attention_heads": 3,
                "max_position_embeddings": 64,
                **NO_SPECIAL,
            },
            {"vocab_size": 1000, "num_layers": 2, **NO_SPECIAL},
        ),
    ),
    decoder(
        "mixtral",
        "MixtralForCausalLM",
        "MixtralConfig",
        base=(SPLIT, REAL),
        small={"num_local_experts": 4},
        real={"num_local_experts": 8, "intermediate_size": 2048},
        note="experts by a grouped matmul",
    ),
    decoder(
        "mixtral_batched",
        "MixtralForCausalLM",
        "MixtralConfig",
        base=(SPLIT, REAL),
        small={"num_local_experts": 4, "experts_implementation": "batched_mm"},
        real={"num_local_experts": 8, "intermediate_size": 2048, "experts_implementation": "batched_mm"},
        real_length=8,  # every token fetches its experts' weights
        note="experts by a batched matmul",
    ),
    decoder("qwen3_moe", "Qwen3MoeForCausalLM", "Qwen3MoeConfig", small=MOE, real=REAL_MOE),
    decoder(
        "gpt_oss",
        "GptOssForCausalLM",
        "GptOssConfig",
        small={"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 4},
        real={"num_local_experts": 8, "intermediate_size": 1024, "head_dim": 64, "num_experts_per_tok": 2},
        note="attention sinks, interleaved gate and up",
    ),
    decoder(
        "deepseek_v3",
        "DeepseekV3ForCausalLM",
        "DeepseekV3Config",
        base=(MHA, REAL_MHA),
        small={
            "hidden_size": 36,
            "q_lora_rank": 14,
            "kv_lora_rank": 18,
            "qk_rope_head_dim": 4,
            "qk_nope_head_dim": 6,
            "v_head_dim": 8,
            "n_routed_experts": 12,
            "n_group": 3,
            "topk_group": 2,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 20,
            "first_k_dense_replace": 1,
            "n_shared_experts": 1,
        },
        real={
            "n_routed_experts": 8,
            "n_group": 2,
            "topk_group": 1,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 512,
            "first_k_dense_replace": 1,
        },
        note="latent attention: low-rank q and kv, part rotary",
    ),
    decoder(
        "mamba",
        "MambaForCausalLM",
        "MambaConfig",
        base=(
            {
                "vocab_size": 53,
                "hidden_size": 28,
                "state_size": 6,
                "num_hidden_layers": 2,
                "conv_kernel": 3,
                "time_step_rank": 5,
                **NO_SPECIAL,
            },
            {"vocab_size": 1000, "num_hidden_layers": 2, **NO_SPECIAL},
        ),
        mask=False,
        dynamic=batch_only("input_ids"),
        note="the scan is unrolled over the sequence",
        length=5,
    ),
    seq2seq("t5", "T5ForConditionalGeneration", "T5Config", T5_SMALL, T5_REAL, note="one relative-bias table for all layers"),
    seq2seq(
        "t5_gated",
        "T5ForConditionalGeneration",
        "T5Config",
        {**T5_SMALL, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
        {**T5_REAL, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
    ),
    seq2seq("bart", "BartForConditionalGeneration", "BartConfig", *BART),
    seq2seq("mbart", "MBartForConditionalGeneration", "MBartConfig", *BART),
    seq2seq("marian", "MarianMTModel", "MarianConfig", *BART, note="sinusoidal positions"),
    seq2seq("pegasus", "PegasusForConditionalGeneration", "PegasusConfig", *BART),
    seq2seq(
        "whisper",
        "WhisperForConditionalGeneration",
        "WhisperConfig",
        {**BART[0], "num_mel_bins": 8, "max_source_positions": 12, "max_target_positions": 20},
        {**BART[1], "decoder_start_token_id": 2},
        inputs=_whisper_inputs,
        dynamic=batch_only("input_features", "decoder_input_ids"),
        note="the encoder's length is fixed by its positions",
    ),
    Entry(
        "wav2vec2",
        "decoders",
        "transformers:Wav2Vec2ForCTC",
        hf("Wav2Vec2ForCTC", "Wav2Vec2Config", *WAVE),
        _waves,
        _wave_shapes,
        "Conv1d front end with one group norm, weight-normed grouped position conv",
    ),
    Entry(
        "wav2vec2_layer_norm",
        "decoders",
        "transformers:Wav2Vec2ForSequenceClassification",
        hf(
            "Wav2Vec2ForSequenceClassification",
            "Wav2Vec2Config",
            {**WAVE[0], "feat_extract_norm": "layer", "do_stable_layer_norm": True},
            {**WAVE[1], "feat_extract_norm": "layer", "do_stable_layer_norm": True},
        ),
        _waves,
        _wave_shapes,
    ),
    Entry("hubert", "decoders", "transformers:HubertForCTC", hf("HubertForCTC", "HubertConfig", *WAVE), _waves, _wave_shapes),
    Entry(
        "wavlm",
        "decoders",
        "transformers:WavLMForCTC",
        hf("WavLMForCTC", "WavLMConfig", {**WAVE[0], "num_buckets": 8, "max_bucket_distance": 16}, WAVE[1]),
        _waves,
        _wave_shapes,
        "gated relative position bias",
    ),
    Entry(
        "patchtst",
        "decoders",
        "transformers:PatchTSTForPrediction",
        hf(
            "PatchTSTForPrediction",
            "PatchTSTConfig",
            {
                "num_input_channels": 3,
                "context_length": 24,
                "patch_length": 4,
                "patch_stride": 4,
                "d_model": 30,
                "num_attention_heads": 3,
                "num_hidden_layers": 2,
                "ffn_dim": 44,
                "prediction_length": 5,
            },
            {"num_input_channels": 3, "context_length": 96, "num_hidden_layers": 2, "prediction_length": 24},
        ),
        _series,
        _series_shapes,
        "time series; BatchNorm between transposes",
    ),
    Entry(
        "patchtsmixer",
        "decoders",
        "transformers:PatchTSMixerForPrediction",
        hf(
            "PatchTSMixerForPrediction",
            "PatchTSMixerConfig",
            {
                "num_input_channels": 3,
                "context_length": 24,
                "patch_length": 4,
                "patch_stride": 4,
                "d_model": 14,
                "num_layers": 2,
                "prediction_length": 5,
            },
            {"num_input_channels": 3, "context_length": 96, "d_model": 64, "num_layers": 2, "prediction_length": 24},
        ),
        _series,
        _series_shapes,
        "time series; MLP-mixer",
    ),
)

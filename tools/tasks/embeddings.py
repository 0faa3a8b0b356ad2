"""`embeddings`: do sentences keep their place? MiniLM as published; fidelity of its sentence embeddings."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from optin_fx.errors import DataError

from . import archive, metrics, minilm
from .task import Batch, Facts, Labels, Metrics, Run, Task, answers, cut

ORIGINS = ("amazonReview", "nytEditorial", "tweets")


@dataclass(frozen=True)
class Embeddings(Task):
    """Product reviews, editorials and tweets, mixed evenly in the held-out set; no labels: the dense model is the truth."""

    name: ClassVar[str] = "embeddings"
    metric: ClassVar[str] = "cosine"
    needs_training: ClassVar[bool] = False

    length: int = 40
    held_out: int = 200  # of each origin

    def model(self) -> nn.Module:
        return minilm.encoder()

    def split(self) -> tuple[list[str], list[str]]:
        """(for calibration, held out) texts; a text that occurs in two origins is kept once."""
        rest: dict[str, None] = {}
        kept: dict[str, None] = {}
        for origin in ORIGINS:
            left, right = archive.split([snippet.text for snippet in archive.read(origin)], self.held_out)
            rest |= dict.fromkeys(left)
            kept |= dict.fromkeys(right)
        return [text for text in rest if text not in kept], list(kept)

    def calibration(self, n: int, seed: int = 0, batch: int = 32) -> list[Batch]:
        return cut(minilm.encode(archive.sample(self.split()[0], n, seed), self.length), batch)

    def labels(self, n: int, seed: int = 0, batch: int = 32) -> list[Labels] | None:
        return None

    def loss(self, output: Any, labels: Labels) -> Tensor:
        raise DataError(
            "the task 'embeddings' has no labels",
            so="a criterion that needs a loss cannot be used on it",
            fix="use a label-free criterion, or another task",
        )

    def evaluate(self, run: Run, batch: int = 50) -> Metrics:
        inputs = minilm.encode(self.split()[1], self.length)
        (states,) = answers(run, inputs, batch, "last_hidden_state")
        found, dense = pool(states, inputs["attention_mask"]), dense_embeddings(self)
        return {
            "cosine": metrics.mean_cosine(found, dense),
            "spearman": metrics.spearman(metrics.pair_similarities(found), metrics.pair_similarities(dense)),
        }

    def train(self) -> Facts:
        """Nothing to train: the weights are the published ones."""
        return {"seconds": 0, "dense": self.evaluate(self.model())}

    def dynamic_shapes(self) -> Any:
        batch = torch.export.Dim("batch", max=4096)
        return {"input_ids": {0: batch}, "attention_mask": {0: batch}}


def pool(states: Tensor, mask: Tensor) -> Tensor:
    """Sentence embeddings (texts, width) as the model's authors define them: token mean without padding, unit length."""
    weights = mask.unsqueeze(-1).to(states)
    return functional.normalize((states * weights).sum(1) / weights.sum(1), dim=-1)


@lru_cache(maxsize=2)
def dense_embeddings(task: Embeddings) -> Tensor:
    """The held-out texts' embeddings by the dense model; kept, as every evaluation needs them."""
    inputs = minilm.encode(task.split()[1], task.length)
    (states,) = answers(task.model(), inputs, 50, "last_hidden_state")
    return pool(states, inputs["attention_mask"])

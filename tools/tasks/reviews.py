"""`reviews`: is a movie-review snippet favourable? MiniLM, fine-tuned; 2 classes; accuracy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from . import archive, cache, metrics, minilm, training
from .task import Batch, Facts, Labels, Metrics, Run, Task, answers, cut, pick

RECIPE = training.Recipe(epochs=2, rate=1e-4, batch=32, cosine=False)


@dataclass(frozen=True)
class Reviews(Task):
    """10,605 snippets of Rotten Tomatoes reviews; the label is the sign of the people's mean score (0 counts as bad)."""

    name: ClassVar[str] = "reviews"
    metric: ClassVar[str] = "accuracy"

    length: int = 40
    held_out: int = 2000

    def model(self) -> nn.Module:
        return cache.restore(self.name, minilm.classifier)

    def split(self) -> tuple[list[archive.Snippet], list[archive.Snippet]]:
        """(for training and calibration, held out); the same whatever the calibration seed."""
        return archive.split(archive.read("movieReview"), self.held_out)

    def calibration(self, n: int, seed: int = 0, batch: int = 32) -> list[Batch]:
        return cut(self._encode(archive.sample(self.split()[0], n, seed)), batch)

    def labels(self, n: int, seed: int = 0, batch: int = 32) -> list[Labels] | None:
        return list(targets(archive.sample(self.split()[0], n, seed)).split(batch))

    def loss(self, output: Any, labels: Labels) -> Tensor:
        assert isinstance(labels, Tensor)
        return functional.cross_entropy(pick(output, "logits")[0], labels)

    def evaluate(self, run: Run, batch: int = 50) -> Metrics:
        held_out = self.split()[1]
        (logits,) = answers(run, self._encode(held_out), batch, "logits")
        labels = targets(held_out)
        return {
            "accuracy": metrics.accuracy(logits, labels),
            "loss": functional.cross_entropy(logits, labels).item(),
        }

    def train(self) -> Facts:
        torch.manual_seed(RECIPE.seed)
        snippets, model = self.split()[0], minilm.classifier()
        inputs, labels = self._encode(snippets), targets(snippets)

        def loss(model: nn.Module, chosen: Tensor) -> Tensor:
            output = model(**{name: value[chosen] for name, value in inputs.items()})
            return self.loss(output, labels[chosen])

        seconds = training.fit(model, len(snippets), loss, RECIPE, title=self.name)
        facts = training.facts(RECIPE, seconds, self.evaluate(model))
        cache.save_checkpoint(self.name, model.state_dict(), facts)
        return facts

    def dynamic_shapes(self) -> Any:
        batch = torch.export.Dim("batch", max=4096)
        return {"input_ids": {0: batch}, "attention_mask": {0: batch}}

    def _encode(self, snippets: list[archive.Snippet]) -> dict[str, Tensor]:
        return minilm.encode([snippet.text for snippet in snippets], self.length)


def targets(snippets: list[archive.Snippet]) -> Tensor:
    """1 where the people's mean score is above zero."""
    return torch.tensor([int(snippet.score > 0) for snippet in snippets])

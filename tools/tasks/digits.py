"""5,000 MNIST digits, and the part that the two digit tasks share: split, augmentation, training, accuracy."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from . import archive, cache, metrics, training
from .task import Batch, Facts, Labels, Metrics, Run, Task, answers, cut, pick

MEAN, DEVIATION = 0.1307, 0.3081  # of MNIST's training pixels, as everyone uses them


def parse(table: Any) -> tuple[Tensor, Tensor]:
    """Rows of 784 grey values (0..255) and a label to pictures (n, 1, 28, 28), normalised, and labels (n,)."""
    numbers = torch.as_tensor(table)
    pixels = numbers[:, :-1].float().div(255).sub(MEAN).div(DEVIATION)
    return pixels.reshape(-1, 1, 28, 28), numbers[:, -1].long()


@lru_cache(maxsize=1)
def read() -> tuple[Tensor, Tensor]:
    """All digits, in the file's order (sorted by label)."""
    import numpy

    return parse(numpy.loadtxt(cache.data("mnist_5k.csv.gz"), delimiter=",", dtype=numpy.float32))


def jitter(pictures: Tensor, *, degrees: float = 12, shift: float = 2, zoom: float = 0.1) -> Tensor:
    """Each picture turned, moved (in pixels) and scaled a little, by torch's global generator."""
    count = len(pictures)
    angle, across, down, size = (torch.rand(4, count) * 2 - 1).unbind()
    angle = angle * degrees * math.pi / 180
    size = 1 + size * zoom
    step = 2 * shift / pictures.shape[-1]
    rows = [angle.cos() * size, -angle.sin() * size, across * step, angle.sin() * size, angle.cos() * size, down * step]
    grid = functional.affine_grid(torch.stack(rows, 1).view(count, 2, 3), list(pictures.shape), align_corners=False)
    # What enters from outside is paper, and paper is not zero after normalisation.
    paper = -MEAN / DEVIATION
    return functional.grid_sample(pictures - paper, grid, align_corners=False) + paper


@dataclass(frozen=True)
class DigitTask(Task):
    """4,000 digits to train and calibrate on, 1,000 held out; the two networks see the same ones."""

    metric: ClassVar[str] = "accuracy"
    recipe: ClassVar[training.Recipe]

    held_out: int = 1000

    @abstractmethod
    def bare(self) -> nn.Module:
        """The network with random weights; it maps (n, 1, 28, 28) to logits (n, 10)."""

    def model(self) -> nn.Module:
        return cache.restore(self.name, self.bare)

    def split(self) -> tuple[list[int], list[int]]:
        """Row numbers (for training and calibration, held out)."""
        return archive.split(range(len(read()[1])), self.held_out)

    def calibration(self, n: int, seed: int = 0, batch: int = 32) -> list[Batch]:
        return cut((read()[0][archive.sample(self.split()[0], n, seed)],), batch)

    def labels(self, n: int, seed: int = 0, batch: int = 32) -> list[Labels] | None:
        return list(read()[1][archive.sample(self.split()[0], n, seed)].split(batch))

    def loss(self, output: Any, labels: Labels) -> Tensor:
        assert isinstance(labels, Tensor)
        return functional.cross_entropy(pick(output, "logits")[0], labels)

    def evaluate(self, run: Run, batch: int = 50) -> Metrics:
        pictures, labels = (values[self.split()[1]] for values in read())
        (logits,) = answers(run, (pictures,), batch, "logits")
        return {
            "accuracy": metrics.accuracy(logits, labels),
            "loss": functional.cross_entropy(logits, labels).item(),
        }

    def train(self) -> Facts:
        torch.manual_seed(self.recipe.seed)
        model = self.bare()
        pictures, labels = (values[self.split()[0]] for values in read())

        def loss(model: nn.Module, chosen: Tensor) -> Tensor:
            return self.loss(model(jitter(pictures[chosen])), labels[chosen])

        seconds = training.fit(model, len(labels), loss, self.recipe, title=self.name)
        facts = training.facts(self.recipe, seconds, self.evaluate(model))
        cache.save_checkpoint(self.name, model.state_dict(), facts)
        return facts

    def dynamic_shapes(self) -> Any:
        return ({0: torch.export.Dim("batch", max=4096)},)

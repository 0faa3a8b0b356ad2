"""What an offline task is: a trained model, calibration inputs, and a metric on data that neither has seen."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

Batch = dict[str, Tensor] | tuple[Tensor, ...]
Labels = Tensor | tuple[Tensor, ...]
Run = Callable[..., Any]
Metrics = dict[str, float]
Facts = dict[str, Any]


@dataclass(frozen=True)
class Task(ABC):
    """A frozen description; nothing is read before a method is called.

    `name` is what the command line calls it. `metric` is the key of `evaluate`'s result that tables show first; for
    every task, more of it is better. `needs_training` is False where the published weights are used as they are. `revision` is raised when
    a task's data change: figures of other data are not shown beside those of today's.
    """

    name: ClassVar[str]
    metric: ClassVar[str]
    needs_training: ClassVar[bool] = True
    revision: ClassVar[str] = "1"

    @abstractmethod
    def model(self) -> nn.Module:
        """The dense model in eval mode, a new one each time, so that a caller may change it."""

    @abstractmethod
    def calibration(self, n: int, seed: int = 0, batch: int = 32) -> list[Batch]:
        """`n` unlabelled inputs in batches (dict: keyword arguments, tuple: positional ones), chosen by `seed`.

        They come from the training side of the split; `evaluate` never sees them.
        """

    @abstractmethod
    def labels(self, n: int, seed: int = 0, batch: int = 32) -> list[Labels] | None:
        """The labels of `calibration(n, seed, batch)`, batch by batch; None for a task that has none."""

    @abstractmethod
    def loss(self, output: Any, labels: Labels) -> Tensor:
        """The mean training loss of a batch, a scalar; `output` is what the model returned."""

    @abstractmethod
    def evaluate(self, run: Run, batch: int = 50) -> Metrics:
        """Metrics of `run` on the held-out data; it is called as the model is and may return the bare tensor(s)."""

    @abstractmethod
    def train(self) -> Facts:
        """Make the checkpoint in the cache (a few minutes on two cores); returns what the zoo's table shows."""

    @abstractmethod
    def dynamic_shapes(self) -> Any:
        """For `torch.export.export`: the batch is free, all else fixed."""

    def example(self) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
        """Example inputs (args, kwargs), a batch of two."""
        (batch,) = self.calibration(2, batch=2)
        return (batch, {}) if isinstance(batch, tuple) else ((), batch)


def call(run: Run, batch: Batch) -> Any:
    """Run a model or engine on one batch, as its inputs want to be passed."""
    return run(**batch) if isinstance(batch, dict) else run(*batch)


def pick(output: Any, *names: str) -> tuple[Tensor, ...]:
    """The named results of a model, whatever it wraps them in: a model output, a mapping, a sequence or a bare tensor.

    A sequence or bare tensor is taken in the order of `names`.
    """
    if isinstance(output, Mapping):
        found: Sequence[Any] = [output[name] for name in names]
    elif all(hasattr(output, name) for name in names):
        found = [getattr(output, name) for name in names]
    elif isinstance(output, Tensor) or not isinstance(output, Sequence):
        found = [output]
    else:
        found = list(output)[: len(names)]
    if len(found) != len(names):
        raise TypeError(f"expected the results {', '.join(names)}, found {len(found)} of {len(names)}")
    return tuple(torch.as_tensor(value) for value in found)


def cut(inputs: Batch, size: int) -> list[Batch]:
    """One big batch cut into batches of at most `size`."""
    values = list(inputs.values()) if isinstance(inputs, dict) else list(inputs)
    pieces = zip(*(value.split(size) for value in values), strict=True)
    if isinstance(inputs, dict):
        return [dict(zip(inputs, piece, strict=True)) for piece in pieces]
    return list(pieces)


def answers(run: Run, inputs: Batch, size: int, *names: str) -> tuple[Tensor, ...]:
    """The named results for all inputs, run batch by batch without gradients, on the CPU in float32."""

    def each() -> Iterator[tuple[Tensor, ...]]:
        for batch in cut(inputs, size):
            yield tuple(value.detach().cpu().float() for value in pick(call(run, batch), *names))

    with torch.no_grad():
        return tuple(torch.cat(parts) for parts in zip(*each(), strict=True))

"""`photos`: does the classifier still see the same thing? EfficientNet-Lite0 with published weights, on photographs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from optin_fx.errors import DataError

from . import cache, metrics, photographs
from .task import Batch, Facts, Labels, Metrics, Run, Task, answers, cut, pick


@dataclass(frozen=True)
class Photos(Task):
    """Random views of 7 photographs, calibrated on views of 31 others; no labels: the dense model is the truth."""

    name: ClassVar[str] = "photos"
    metric: ClassVar[str] = "agreement"
    revision: ClassVar[str] = "2"  # 1 had eleven photographs to calibrate on

    size: int = 224
    held_out: int = 700

    def model(self) -> nn.Module:
        return cache.restore(self.name, bare)

    def calibration(self, n: int, seed: int = 0, batch: int = 32) -> list[Batch]:
        return cut((photographs.views(photographs.CALIBRATION, n, self.size, seed),), batch)

    def labels(self, n: int, seed: int = 0, batch: int = 32) -> list[Labels] | None:
        return None

    def loss(self, output: Any, labels: Labels) -> Tensor:
        """Cross entropy, for labels drawn from the model's own output: the photographs have none."""
        assert isinstance(labels, Tensor)
        return functional.cross_entropy(pick(output, "logits")[0], labels)

    def evaluate(self, run: Run, batch: int = 50) -> Metrics:
        (logits,) = answers(run, (held_out_views(self),), batch, "logits")
        dense = dense_logits(self)
        return {"agreement": metrics.agreement(logits, dense), "kl": metrics.divergence(logits, dense)}

    def train(self) -> Facts:
        """Nothing to train: the published tensors are renamed, in order, and stored as safetensors."""
        published = torch.load(cache.data("efficientnet_lite0/weights.pth"), map_location="cpu", weights_only=True)
        # The dense model is the truth here, so its own figures are known without measuring.
        facts = {"seconds": 0, "dense": {"agreement": 1.0, "kl": 0.0}}
        cache.save_checkpoint(self.name, renamed(published, bare().state_dict()), facts)
        return facts

    def dynamic_shapes(self) -> Any:
        return ({0: torch.export.Dim("batch", max=4096)},)


def bare() -> nn.Module:
    """EfficientNet-Lite0 with random weights."""
    import timm

    return timm.create_model("tf_efficientnet_lite0", pretrained=False)


def renamed(published: dict[str, Tensor], wanted: dict[str, Tensor]) -> dict[str, Tensor]:
    """The published tensors under timm's names: both list the same layers in the same order."""
    same = len(published) == len(wanted)
    if not same or any(a.shape != b.shape for a, b in zip(published.values(), wanted.values(), strict=True)):
        raise DataError(
            f"the published weights ({len(published)} tensors) do not fit timm's model ({len(wanted)})",
            so="the task 'photos' cannot be built",
            fix="install timm 1.0",
        )
    return dict(zip(wanted, published.values(), strict=True))


@lru_cache(maxsize=1)
def held_out_views(task: Photos) -> Tensor:
    """The evaluation pictures; their seed is not one that a caller of `calibration` would pick."""
    return photographs.views(photographs.EVALUATION, task.held_out, task.size, seed=-1)


@lru_cache(maxsize=1)
def dense_logits(task: Photos) -> Tensor:
    """The dense model's logits on them; kept, as every evaluation needs them."""
    return answers(task.model(), (held_out_views(task),), 50, "logits")[0]

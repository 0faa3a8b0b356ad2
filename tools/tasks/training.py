"""The one training loop of the zoo: seeded, with a progress line, the same result each time on the same machine."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass

import torch
from torch import nn

Loss = Callable[[nn.Module, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Recipe:
    """AdamW with a linear warm-up and a cosine (or linear) decay to zero.

    `threads` is part of it: sums are split among threads, so their number decides the last bits, and by them the weights.
    """

    epochs: int
    rate: float
    batch: int = 32
    decay: float = 0.01
    warmup: float = 0.1
    cosine: bool = True
    clip: float = 1.0
    seed: int = 0
    threads: int = 2


def batches(items: int, size: int, generator: torch.Generator) -> Iterator[torch.Tensor]:
    """Shuffled index tensors; the last, smaller one is dropped, as BatchNorm dislikes tiny batches."""
    order = torch.randperm(items, generator=generator)
    for start in range(0, items - size + 1, size):
        yield order[start : start + size]


def scale(step: int, steps: int, recipe: Recipe) -> float:
    """The learning rate at `step` as a share of its peak."""
    warm = max(1, round(recipe.warmup * steps))
    if step < warm:
        return (step + 1) / warm
    done = (step - warm) / max(1, steps - warm)
    return 0.5 * (1 + math.cos(math.pi * done)) if recipe.cosine else 1 - done


def groups(model: nn.Module, decay: float) -> list[dict[str, object]]:
    """Weight decay on matrices and filters only: biases and norms have no reason to shrink."""
    trained = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def fit(model: nn.Module, items: int, loss: Loss, recipe: Recipe, *, title: str = "training") -> float:
    """Train `model` in place on `items` samples; `loss(model, indices)` is the mean loss of a batch.

    Returns:
        Seconds spent.
    """
    torch.manual_seed(recipe.seed)
    generator = torch.Generator().manual_seed(recipe.seed)
    optimizer = torch.optim.AdamW(groups(model, recipe.decay), lr=recipe.rate)
    order = [chosen for _ in range(recipe.epochs) for chosen in batches(items, recipe.batch, generator)]
    began, smooth = time.monotonic(), math.nan
    model.train()
    with threads(recipe.threads):
        for step, chosen in enumerate(order):
            for group in optimizer.param_groups:
                group["lr"] = recipe.rate * scale(step, len(order), recipe)
            value = loss(model, chosen)
            optimizer.zero_grad(set_to_none=True)
            value.backward()
            nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
            optimizer.step()
            smooth = value.item() if math.isnan(smooth) else 0.95 * smooth + 0.05 * value.item()
            report(title, step + 1, len(order), smooth, time.monotonic() - began)
    model.eval()
    return time.monotonic() - began


def report(title: str, step: int, steps: int, loss: float, seconds: float) -> None:
    """One line, rewritten on a terminal; in a log file, one line for every twentieth of the run."""
    live = sys.stderr.isatty()
    if not live and step % max(1, steps // 20) and step != steps:
        return
    left = seconds / step * (steps - step)
    text = f"{title}: step {step}/{steps}  loss {loss:.3f}  {seconds:.0f} s, {left:.0f} s left"
    print(f"\r{text}   " if live else text, end="" if live and step < steps else "\n", file=sys.stderr, flush=True)


def facts(recipe: Recipe, seconds: float, dense: dict[str, float]) -> dict[str, object]:
    """What is written beside a checkpoint, so that it can be made again and compared."""
    return {"recipe": asdict(recipe), "seconds": round(seconds), "torch": torch.__version__, "dense": dense}

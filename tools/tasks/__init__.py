"""Offline tasks on which the quality of pruning is measured. `task("reviews")` gives one, `NAMES` lists them.

Import as `tasks` with the folder `tools` on the path, as every script in it has. Data come from `fetch_data.py`,
checkpoints from `train_zoo.py`; see docs/tasks.md.
"""

from __future__ import annotations

from importlib import import_module

from optin_fx.errors import DataError

from .cache import NotCached
from .task import Batch, Labels, Metrics, Run, Task, call, pick

# Modules are imported when asked for: a task needs transformers or timm, and none needs both.
_HOMES = {
    "reviews": ("reviews", "Reviews"),
    "embeddings": ("embeddings", "Embeddings"),
    "photos": ("photos", "Photos"),
    "mnist-vit": ("mnist_vit", "MnistViT"),
    "mnist-resnet": ("mnist_resnet", "MnistResNet"),
    "spans": ("spans", "Spans"),
}
NAMES = tuple(_HOMES)

__all__ = ["NAMES", "Batch", "Labels", "Metrics", "NotCached", "Run", "Task", "call", "pick", "task"]


def task(name: str) -> Task:
    """The task of that name, with its default options.

    Raises:
        DataError: there is none.
    """
    if name not in _HOMES:
        raise DataError(f"no task is called '{name}'", fix=f"choose one of {', '.join(NAMES)}")
    module, cls = _HOMES[name]
    made = getattr(import_module(f"{__name__}.{module}"), cls)()
    assert isinstance(made, Task)
    return made

"""Where fetched data and trained checkpoints live, and how they are written: safetensors beside JSON, never pickle."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from optin_fx.errors import DataError
from optin_fx.files import cache_folder as folder

WEIGHTS, FACTS = "weights.safetensors", "facts.json"


class NotCached(DataError):
    """A task needs data or a checkpoint that is not in the cache yet."""


def data(name: str) -> Path:
    """Path of a fetched file.

    Raises:
        NotCached: it has not been fetched.
    """
    path = folder() / "data" / name
    if not path.exists():
        raise NotCached(
            f"the data file '{name}' has not been fetched",
            at=str(path),
            so="the task cannot be built",
            fix="python tools/fetch_data.py",
        )
    return path


def has_checkpoint(name: str) -> bool:
    return (folder() / "zoo" / name / FACTS).exists()


def save_checkpoint(name: str, tensors: Mapping[str, torch.Tensor], facts: Mapping[str, Any]) -> Path:
    """Write a checkpoint in one step, so that an interrupted run never leaves half of one."""
    target = folder() / "zoo" / name
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=target.parent))
    # Tied weights share storage, which safetensors refuses: every tensor is written on its own.
    save_file({key: value.detach().clone().contiguous() for key, value in tensors.items()}, scratch / WEIGHTS)
    digest = hashlib.sha256((scratch / WEIGHTS).read_bytes()).hexdigest()
    (scratch / FACTS).write_text(json.dumps({**facts, "sha256": digest}, indent=2) + "\n")
    shutil.rmtree(target, ignore_errors=True)
    scratch.rename(target)
    return target


def load_checkpoint(name: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Tensors and facts of a checkpoint.

    Raises:
        NotCached: it has not been trained.
        DataError: the weights are not the ones that the facts speak of.
    """
    source = folder() / "zoo" / name
    if not has_checkpoint(name):
        raise NotCached(
            f"the model of task '{name}' has not been trained",
            at=str(source),
            so="the task cannot be built",
            fix=f"python tools/train_zoo.py {name}",
        )
    facts = json.loads((source / FACTS).read_text())
    if hashlib.sha256((source / WEIGHTS).read_bytes()).hexdigest() != facts["sha256"]:
        raise DataError(
            f"the checkpoint of task '{name}' is damaged",
            at=str(source / WEIGHTS),
            so="results would not be comparable",
            fix=f"python tools/train_zoo.py --again {name}",
        )
    return load_file(source / WEIGHTS), facts


def restore(name: str, make: Callable[[], nn.Module]) -> nn.Module:
    """The trained model of a task in eval mode; `make` builds it with any weights.

    Raises:
        NotCached: it has not been trained.
        DataError: the checkpoint is damaged, or of a network that the task no longer uses.
    """
    tensors, _ = load_checkpoint(name)
    model = make()
    wanted = model.state_dict()
    if {key: value.shape for key, value in wanted.items()} != {key: value.shape for key, value in tensors.items()}:
        raise DataError(
            f"the checkpoint of task '{name}' is of another network",
            at=str(folder() / "zoo" / name),
            so="the task has changed since it was trained",
            fix=f"python tools/train_zoo.py --again {name}",
        )
    model.load_state_dict(tensors)
    return model.eval()

"""Cells of a grid, each one JSON file: what was asked for, and what came out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tasks import cache

from optin_fx.files import write_whole


@dataclass(frozen=True)
class Cell:
    """What identifies a result. Equal cells have equal results, up to rounding.

    Attributes:
        task, checkpoint: the task's name, and the SHA-256 of its weights ("published" where it has no checkpoint).
        pipeline: the passes as text, which shows options that are not at their defaults; budget and seed are among them.
        budget: percent of the dense FLOPs.
        seed: of the calibration draw, and of all passes that have one.
        samples: calibration inputs.
        revision: of the task's data, see `Task`.
    """

    task: str
    checkpoint: str
    pipeline: str
    budget: float
    seed: int
    samples: int
    revision: str = "1"

    @property
    def key(self) -> str:
        return fingerprint(asdict(self))


@dataclass(frozen=True)
class Result:
    """A finished cell.

    Attributes:
        cell: what it belongs to.
        metrics: the task's metrics of the smaller program.
        shares: flops and params of the smaller program, counted on it, as shares of the dense one's.
        seconds: wall time by stage (score, search, rewrite, evaluate) on one thread; a score that another cell made counts as in that cell.
        facts: further JSON-able facts (all options of the passes, kept units by group, git commit).
    """

    cell: Cell
    metrics: Mapping[str, float]
    shares: Mapping[str, float]
    seconds: Mapping[str, float]
    facts: Mapping[str, Any]


def fingerprint(facts: Any) -> str:
    """24 hexadecimal digits that stand for some JSON-able facts."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:24]


def checkpoint(task: str) -> str:
    """The SHA-256 of the weights that a task's model is restored from."""
    if not cache.has_checkpoint(task):
        return "published"
    return str(json.loads((cache.folder() / "zoo" / task / cache.FACTS).read_text())["sha256"])


@dataclass(frozen=True)
class Store:
    """A folder of cells. A file is written in one step, so that an interruption loses the running cell and no other."""

    folder: Path

    @classmethod
    def default(cls) -> Store:
        return cls(cache.folder() / "quality")

    def read(self, cell: Cell) -> Result | None:
        path = self._path(cell)
        return _result(json.loads(path.read_text())) if path.exists() else None

    def write(self, result: Result) -> None:
        write_whole(self._path(result.cell), json.dumps(asdict(result), indent=1) + "\n")

    def scores(self, key: str) -> Path:
        """Where the scores of that key are kept."""
        return self.folder / "scores" / f"{key}.safetensors"

    def __iter__(self) -> Iterator[Result]:
        for path in sorted((self.folder / "cells").glob("*.json")):
            yield _result(json.loads(path.read_text()))

    def _path(self, cell: Cell) -> Path:
        return self.folder / "cells" / f"{cell.key}.json"


def _result(facts: dict[str, Any]) -> Result:
    return Result(Cell(**facts["cell"]), facts["metrics"], facts["shares"], facts["seconds"], facts["facts"])

"""Partial results on disk: what a loop has summed up so far, so that the same command goes on where it was interrupted.

A folder named by the hash of graph, weights, data and options; in it one safetensors file of sums for each loop and process, and one for
each item that brings rows. Files are replaced whole, so a kill at any moment leaves the state before or after an item. Never pickle.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch

from optin_fx.files import replacing, saving


class Partial:
    """The partial result of one loop in one process.

    Args:
        folder: of the whole pass.
        label: of the loop; names its files.
    """

    def __init__(self, folder: Path, label: str) -> None:
        self.folder, self.label = folder, label

    def load(self) -> tuple[set[int], dict[str, torch.Tensor]]:
        """Numbers of the items that are done, and the sums over them. A file that cannot be read counts as none."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(str(self._sums), framework="pt") as file:
                done = json.loads((file.metadata() or {})["done"])
                return set(done), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  no iterator
        except (OSError, KeyError, ValueError, SafetensorError):
            return set(), {}

    def save(self, done: set[int], sums: Mapping[str, torch.Tensor]) -> None:
        """Replace the sums.

        Raises:
            SaveError: the place cannot be written.
        """
        self._write(self._sums, sums, {"done": json.dumps(sorted(done))})

    def save_rows(self, item: int, rows: Mapping[str, torch.Tensor]) -> None:
        """Keep the rows of an item; call it before `save` marks the item as done."""
        self._write(self._rows(item), rows, {})

    def load_rows(self, item: int) -> dict[str, torch.Tensor]:
        """The rows of an item that is done."""
        from safetensors.torch import load_file

        return load_file(self._rows(item)) if self._rows(item).exists() else {}

    @property
    def _sums(self) -> Path:
        return self.folder / f"{self.label}.safetensors"

    def _rows(self, item: int) -> Path:
        return self.folder / f"{self.label}.rows.{item}.safetensors"

    def _write(self, path: Path, tensors: Mapping[str, torch.Tensor], facts: dict[str, str]) -> None:
        from safetensors.torch import save_file

        whole = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
        so, fix = "an interruption would lose everything", "choose another place for partial results, or none"
        with saving("the partial result", path, so=so, fix=fix), replacing(path) as fresh:
            save_file(whole, fresh, metadata=facts)


def remove(folder: Path) -> None:
    """Remove a pass's partial results; called when it has succeeded."""
    shutil.rmtree(folder, ignore_errors=True)

"""Values of many batches between two visits: in memory as far as a limit allows, the rest in a temporary folder."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from torch.utils import _pytree as pytree

from optin_fx.files import saving

FIX = "let the environment's TMPDIR name a folder with room, or allow more memory with execution(memory_limit=...)"


class Shelf:
    """Puts trees of tensors away and gives them back as they were, views of one memory still views of one memory.

    The folder is made when the limit is first reached, where `tempfile` makes folders (the environment's TMPDIR), and removed by `close`.

    Args:
        limit: bytes of tensors that may stay in memory.
    """

    def __init__(self, limit: int) -> None:
        self.limit, self.held = limit, 0
        self._here: dict[int, tuple[int, Any]] = {}
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def close(self) -> None:
        """Forget everything, and remove the folder."""
        self._here.clear()
        if self._folder is not None:
            self._folder.cleanup()

    def put(self, number: int, values: Any) -> None:
        """Put away what belongs to a number.

        Raises:
            SaveError: the temporary folder has no room for it.
        """
        size = bytes_of(values)
        if self.held + size <= self.limit:
            self._here[number] = (size, values)
            self.held += size
        else:
            path = self._path(number)
            with saving("the values of a batch", path, so="they cannot wait", fix=FIX), path.open("wb") as file:
                torch.save(values, file)

    def take(self, number: int) -> Any:
        """What belongs to a number; it is no longer here."""
        if number in self._here:
            size, values = self._here.pop(number)
            self.held -= size
            return values
        path = self._path(number)
        values = torch.load(path, weights_only=False)  # written by this process
        path.unlink()
        return values

    def look(self, number: int) -> Any:
        """What belongs to a number, which stays here."""
        if number in self._here:
            return self._here[number][1]
        return torch.load(self._path(number), weights_only=False)  # written by this process

    def _path(self, number: int) -> Path:
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="optin-fx-")
        return Path(self._folder.name) / f"{number}.pt"


def bytes_of(values: Any) -> int:
    """Memory of the tensors in a tree, each memory counted once and whole, as a view keeps all of it."""
    storages = {
        leaf.untyped_storage()._cdata: leaf.untyped_storage() for leaf in pytree.tree_leaves(values) if isinstance(leaf, torch.Tensor)
    }
    return sum(storage.nbytes() for storage in storages.values())

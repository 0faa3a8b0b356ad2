"""What the commands print and where they write."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from optin_fx.errors import OptinError, SaveError


def say(text: str) -> None:
    """A line for people: results go to stdout."""
    sys.stdout.write(text.rstrip("\n") + "\n")


def note(text: str) -> None:
    """A line about the progress: goes to stderr, so that `--json` output and pipes stay clean."""
    sys.stderr.write(text.rstrip("\n") + "\n")


def show(text: Any, facts: Any, *, as_json: bool) -> None:
    """Print `text` for people, or `facts` as one JSON document."""
    say(json.dumps(plain(facts), indent=2, allow_nan=False) if as_json else str(text))


def show_error(error: OptinError, *, as_json: bool) -> None:
    """Print an error in its one form, to stderr; with `--json` also as a document on stdout."""
    note(f"error: {error}")
    if as_json:
        facts = {"kind": type(error).__name__, "what": error.what, "at": error.at, "so": error.so, "fix": error.fix}
        show("", {"error": {key: value for key, value in facts.items() if value}}, as_json=True)


def plain(value: Any) -> Any:
    """The value as JSON can say it. What JSON has no word for becomes text; infinite and undefined numbers become null."""
    if isinstance(value, torch.Tensor):
        return plain(value.tolist())
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {item.name: plain(getattr(value, item.name)) for item in dataclasses.fields(value)}
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int | str):
        return value
    if hasattr(value, "item"):  # a number of numpy
        return plain(value.item())
    return str(value)


def writable_folder(path: Path) -> Path:
    """The folder, made if need be. Called before any work is done: nobody should wait minutes for a refusal.

    Raises:
        SaveError: it cannot be made or written.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise SaveError(
            f"cannot write there: {os.strerror(error.errno) if error.errno else error}",
            at=str(path),
            so="nothing was done",
            fix="choose with --out a folder that you may write to",
        ) from error
    return path


def writable_file(path: Path) -> Path:
    """A file's path whose folder is there and can be written.

    Raises:
        SaveError: the folder cannot be written, or the path is a folder.
    """
    if path.is_dir():
        raise SaveError("this is a folder", at=str(path), so="nothing was done", fix="give the path of a file with --out")
    writable_folder(path.parent)
    return path

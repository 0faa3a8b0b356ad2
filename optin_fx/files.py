"""Writing files: folders made, files replaced whole, one form of the error."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from optin_fx.errors import SaveError

CHOOSE = "choose a folder that exists and that you may write to"


def cache_folder() -> Path:
    """What is kept between runs: `$OPTIN_FX_CACHE`, else `~/.cache/optin-fx`."""
    return Path(os.environ.get("OPTIN_FX_CACHE") or Path.home() / ".cache" / "optin-fx").expanduser()


@contextmanager
def saving(what: str, path: Path, *, so: str = "nothing was saved", fix: str = CHOOSE) -> Iterator[None]:
    """Makes the folder of a file; inside, what the system refuses is a SaveError that says what could not be written, and where.

    Raises:
        SaveError: see above.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise SaveError(f"cannot write {what}: {error.strerror or error}", at=str(path), so=so, fix=fix) from error


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path beside a file, to write to, which takes the file's place at the end: nobody ever sees half of it.

    Several processes may write at once; the last one wins.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield fresh
        os.replace(fresh, path)
    finally:
        fresh.unlink(missing_ok=True)


def remove_if_empty(folder: Path) -> None:
    """Remove a folder that is there and holds nothing."""
    with suppress(OSError):
        folder.rmdir()


def write_whole(path: Path, text: str) -> None:
    """Write a text; a kill at any moment leaves the old file or the new one."""
    with replacing(path) as fresh:
        fresh.write_text(text)

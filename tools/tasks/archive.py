"""Short texts with human sentiment scores (Hutto & Gilbert, ICWSM 2014): movie and product reviews, editorials, tweets.

Splits are drawn here and nowhere else, so that what is held out for one purpose cannot leak into another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch

from optin_fx.errors import DataError

from . import cache

T = TypeVar("T")


@dataclass(frozen=True)
class Snippet:
    """One text with the mean of at least 20 people's ratings, from -4 (bad) to 4 (good).

    `document` numbers the review or article that it is a sentence of; movie snippets and tweets stand alone.
    """

    text: str
    score: float
    document: int


def parse(lines: Sequence[str], origin: str = "snippets") -> list[Snippet]:
    """Read `id <tab> score <tab> text` lines; a text that was seen before is dropped, so no split can share it."""
    found: dict[str, Snippet] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        fields = line.rstrip("\r\n").split("\t", 2)
        if len(fields) != 3:
            raise DataError(
                f"expected 3 tab-separated fields, found {len(fields)}",
                at=f"{origin}:{number}",
                fix="python tools/fetch_data.py --again",
            )
        text = fields[2].strip()
        found.setdefault(text, Snippet(text, float(fields[1]), int(fields[0].partition("_")[0])))
    return list(found.values())


def read(name: str) -> list[Snippet]:
    """Snippets of `movieReview`, `amazonReview`, `nytEditorial` or `tweets`."""
    stem = name if name == "tweets" else f"{name}Snippets"
    path: Path = cache.data(f"snippets/{stem}_GroundTruth.txt")
    # newline="\n": a few texts hold a bare carriage return, which is not the end of a record.
    with open(path, encoding="utf-8-sig", newline="\n") as file:
        return parse(file.readlines(), str(path))


def split(items: Sequence[T], held_out: int, seed: int = 0) -> tuple[list[T], list[T]]:
    """A seeded shuffle cut in two: (rest, held out)."""
    if not 0 < held_out < len(items):
        raise DataError(f"cannot hold out {held_out} of {len(items)} items", fix="hold out fewer, or fetch the data")
    order = torch.randperm(len(items), generator=torch.Generator().manual_seed(seed)).tolist()
    return [items[i] for i in order[held_out:]], [items[i] for i in order[:held_out]]


def sample(items: Sequence[T], n: int, seed: int) -> list[T]:
    """`n` items without repetition, chosen by `seed`."""
    if not 0 < n <= len(items):
        raise DataError(f"cannot draw {n} of {len(items)} items", so="no calibration data", fix=f"ask for 1 to {len(items)}")
    order = torch.randperm(len(items), generator=torch.Generator().manual_seed(seed)).tolist()
    return [items[i] for i in order[:n]]

"""The zoo: stock architectures, each one row of a table.

    from optin_fx.testing import zoo

    program = zoo.get("llama").program()

Nothing is downloaded: weights are random, and drawn so that every one of them matters (`randomise`). transformers, timm and
torchvision are imported only when an entry of theirs is built.
"""

from __future__ import annotations

from fnmatch import fnmatch

from optin_fx.testing.zoo import cnn, decoders, encoders, hybrids, plain, vision, vision_detection, vision_timm
from optin_fx.testing.zoo.entry import Entry, randomise

_TABLES = (encoders, decoders, vision, vision_detection, vision_timm, cnn, hybrids, plain)
ENTRIES: tuple[Entry, ...] = tuple(entry for table in _TABLES for entry in table.ENTRIES)
FAMILIES = tuple(dict.fromkeys(entry.family for entry in ENTRIES))
_BY_NAME = {entry.name: entry for entry in ENTRIES}
if len(_BY_NAME) != len(ENTRIES):
    raise ValueError("two entries of the zoo have one name")


def get(name: str) -> Entry:
    """The entry of that name; `KeyError` where there is none."""
    return _BY_NAME[name]


def select(*patterns: str, family: str | None = None) -> tuple[Entry, ...]:
    """Entries whose name matches one of the shell patterns (all, without patterns), of one family if given."""
    return tuple(
        entry
        for entry in ENTRIES
        if (family is None or entry.family == family) and (not patterns or any(fnmatch(entry.name, p) for p in patterns))
    )


__all__ = ["ENTRIES", "FAMILIES", "Entry", "get", "randomise", "select"]

"""Real English sentences for the demo: some to calibrate on, others, disjoint, to judge by.

They come from the rated texts of Hutto & Gilbert (editorials, product reviews, tweets), which travel in a source
distribution of the package index. Without a connection, sentences of the documentation that Python and the installed
packages ship take their place, and the table says so.
"""

from __future__ import annotations

import ast
import re
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fetch_data import fetch
from tasks import archive
from tasks.embeddings import Embeddings
from tasks.sources import SOURCES

from optin_fx.errors import DataError

DOCUMENTED = ("argparse", "asyncio", "collections", "concurrent", "email", "http", "importlib", "json", "logging", "unittest", "urllib")


@dataclass(frozen=True)
class Sentences:
    """Texts and where they are from."""

    calibration: list[str]
    held_out: list[str]
    origin: str


def sentences(calibration: int, held_out: int, seed: int = 0) -> Sentences:
    """So many of each, drawn at random; no text is in both."""
    try:
        for source in SOURCES:
            if source.package.startswith("vaderSentiment"):
                fetch(source)
        rest, kept = Embeddings().split()
        origin = "editorials, product reviews and tweets (Hutto & Gilbert 2014)"
    except DataError:
        rest, kept = archive.split(list(documentation()), held_out, seed)
        origin = "the documentation of Python's standard library (no connection)"
    return Sentences(archive.sample(rest, calibration, seed), archive.sample(kept, held_out, seed), origin)


def documentation() -> Iterator[str]:
    """Sentences of 5 to 40 words from the docstrings of the standard library, each once."""
    seen: set[str] = set()
    library = Path(sysconfig.get_paths()["stdlib"])
    files = [path for name in DOCUMENTED for path in [library / f"{name}.py", *sorted((library / name).rglob("*.py"))] if path.is_file()]
    for path in files:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                for sentence in re.split(r"(?<=[.!?])\s+|\n\s*\n", ast.get_docstring(node) or ""):
                    text = " ".join(sentence.split())
                    if 5 <= len(text.split()) <= 40 and text[0].isupper() and text[-1] in ".!?" and text not in seen:
                        seen.add(text)
                        yield text

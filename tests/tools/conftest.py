"""The folder `tools` on the path, as its own scripts have it, and a cache with a little made-up data."""

from __future__ import annotations

import gzip
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))

WORDS = [
    "the",
    "a",
    "plot",
    "cast",
    "was",
    "is",
    "good",
    "bad",
    "slow",
    "bright",
    "and",
    "of",
    "in",
    "film",
    "scene",
    "actor",
    "music",
    "story",
    "ends",
    "late",
]


def sentence(number: int, length: int = 9) -> str:
    """Words in an order that no other number has."""
    return " ".join(WORDS[(number * 7 + step * (3 + number % 5)) % len(WORDS)] for step in range(length)) + f" {number} ."


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OPTIN_FX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def tiny_cache(empty_cache: Path) -> Path:
    """60 texts of each origin, 40 digits, and a tokenizer that gives each word its own id."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    data = empty_cache / "data"
    (data / "snippets").mkdir(parents=True)
    for origin, stem in enumerate(("movieReviewSnippets", "amazonReviewSnippets", "nytEditorialSnippets", "tweets")):
        numbers = range(60 * origin, 60 * origin + 60)
        lines = [f"{n // 6}_{n % 6 + 1}\t{(-1) ** n * 1.5}\t{sentence(n)}\r\n" for n in numbers]
        (data / "snippets" / f"{stem}_GroundTruth.txt").write_text("".join(lines), newline="")

    rows = [",".join([str((n * 31 + p) % 256) for p in range(784)] + [str(n % 10)]) for n in range(40)]
    (data / "mnist_5k.csv.gz").write_bytes(gzip.compress("\n".join(rows).encode()))

    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", *WORDS, *(str(n) for n in range(240)), ".", "what", "?"])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    (data / "minilm").mkdir()
    tokenizer.save(str(data / "minilm" / "tokenizer.json"))
    return empty_cache


@pytest.fixture(autouse=True)
def nothing_remembered() -> None:
    """What tasks keep between evaluations belongs to one cache folder; the next test may have another."""
    from tasks import digits, embeddings, minilm, photographs, photos, spans

    for kept in (
        digits.read,
        embeddings.dense_embeddings,
        minilm.tokenizer,
        photographs.load,
        photos.dense_logits,
        photos.held_out_views,
        spans.split,
    ):
        kept.cache_clear()

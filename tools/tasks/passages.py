"""Questions whose answer is a span of a real text, made without people: the words around the span ask for it.

From the passage "… will compete in red suits and beards on Friday …" comes the question "compete in red what on friday ?"
with the answer "suits and beards". To answer, a model has to find the place by its surroundings and both ends of the gap: a
test of attention between two texts, with SQuAD's format and metrics. It is not a test of understanding.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, islice

import torch

from .archive import Snippet

WORD = re.compile(r"\w+(?:[-'’]\w+)*|[^\w\s]")
AROUND = 3  # words on each side that make up the question
LONGEST = 4  # words of an answer
GAP, END = "what", "?"


@dataclass(frozen=True)
class Question:
    """A question about a passage; the answer is `passage[first : last + 1]`, in words."""

    question: tuple[str, ...]
    passage: tuple[str, ...]
    first: int
    last: int

    @property
    def answer(self) -> tuple[str, ...]:
        return self.passage[self.first : self.last + 1]


def passages(snippets: Sequence[Snippet], sentences: int = 2) -> list[tuple[str, ...]]:
    """Each document cut into passages of so many consecutive sentences; a shorter rest is left out."""
    found: list[tuple[str, ...]] = []
    for _, group in groupby(snippets, key=lambda snippet: snippet.document):
        texts = [snippet.text for snippet in group]
        starts = range(0, len(texts) - sentences + 1, sentences)
        found += [tuple(WORD.findall(" ".join(texts[start : start + sentences]))) for start in starts]
    return found


def ask(passage: tuple[str, ...], first: int, last: int) -> Question | None:
    """The question for one span, or None where it has no clear answer.

    The answer must be words throughout, have its full surroundings, and be the only place where these occur.
    """
    left, right = passage[max(0, first - AROUND) : first], passage[last + 1 : last + 1 + AROUND]
    if len(left) < AROUND or len(right) < AROUND or not all(word[0].isalnum() for word in passage[first : last + 1]):
        return None
    places = range(len(passage) - AROUND + 1)
    if any(sum(same(passage[at : at + AROUND], side) for at in places) > 1 for side in (left, right)):
        return None
    return Question((*left, GAP, *right, END), passage, first, last)


def same(left: Sequence[str], right: Sequence[str]) -> bool:
    return [word.lower() for word in left] == [word.lower() for word in right]


def questions(texts: Sequence[tuple[str, ...]], each: int, seed: int) -> list[Question]:
    """Up to `each` different questions per passage, their spans drawn by `seed`."""
    generator = torch.Generator().manual_seed(seed)
    found: list[Question] = []
    for passage in texts:
        spans = [(first, first + more) for first in range(len(passage)) for more in range(LONGEST)]
        order = torch.randperm(len(spans), generator=generator).tolist()
        candidates = (ask(passage, *spans[index]) for index in order if spans[index][1] < len(passage))
        found += islice((made for made in candidates if made is not None), each)
    return found

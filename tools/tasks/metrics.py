"""The measures that the tasks report; all take whole held-out sets and return plain floats."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Share of rows whose largest logit is the label."""
    return (logits.argmax(-1) == labels).double().mean().item()


def agreement(logits: Tensor, dense: Tensor) -> float:
    """Share of rows where both put the same class first."""
    return accuracy(logits, dense.argmax(-1))


def divergence(logits: Tensor, dense: Tensor) -> float:
    """KL(dense || logits) in nats, mean over rows."""
    p, q = dense.double().log_softmax(-1), logits.double().log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1).mean().item()


def mean_cosine(left: Tensor, right: Tensor) -> float:
    """Mean over rows of the cosine between the two."""
    return functional.cosine_similarity(left.double(), right.double(), dim=-1).mean().item()


def spearman(left: Tensor, right: Tensor) -> float:
    """Rank correlation of two vectors; ties share their mean rank."""
    from scipy.stats import spearmanr

    return float(spearmanr(left.double().numpy(), right.double().numpy()).statistic)


def pair_similarities(embeddings: Tensor) -> Tensor:
    """The inner product of every unordered pair of rows, (n (n - 1) / 2,)."""
    rows, columns = torch.triu_indices(len(embeddings), len(embeddings), offset=1)
    return (embeddings @ embeddings.T)[rows, columns]


def span_f1(found: Sequence[str], truth: Sequence[str]) -> float:
    """SQuAD's F1 of one answer: harmonic mean of precision and recall over words, whatever their order and case."""
    left, right = (Counter(word.lower() for word in words) for words in (found, truth))
    common = (left & right).total()
    return 2 * common / (left.total() + right.total()) if common else 0.0


def span_exact(found: Sequence[str], truth: Sequence[str]) -> float:
    """1 where both answers are the same words in the same order, else 0."""
    return float([word.lower() for word in found] == [word.lower() for word in truth])

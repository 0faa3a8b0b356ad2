"""Which outputs of a program a criterion listens to, and how: logits as distributions, features as directions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils import _pytree as pytree

from optin_fx.analysis import analyse
from optin_fx.directions import Directions
from optin_fx.program import Program


@dataclass(frozen=True)
class OutputTerm:
    """One output that counts.

    Attributes:
        index: place in the flat outputs.
        name: its key or attribute in the model's output, else its index.
        kind: "logits" (compared as distributions) or "features" (compared as directions).
        classes: dim of the classes or features.
    """

    index: int
    name: str
    kind: str
    classes: int

    def log_likelihood(self, value: torch.Tensor, generator: torch.Generator, temperature: float = 1.0) -> torch.Tensor:
        """A draw whose squared gate gradient is, in the mean, twice the divergence from the dense output at second order.

        For logits: log p(y), y drawn from the model's own softmax, so that E[g^2] is the Fisher information, 2 KL at
        second order. For features: <v, y / |y|> with normal v, so that E[g^2] is the squared change of direction, averaged over tokens.
        Summed over samples; every sample's part depends on that sample alone.
        """
        value = value.movedim(self.classes, -1).float()
        if self.kind == "logits":
            logp = F.log_softmax(value / temperature, dim=-1) * temperature
            flat = (logp.detach() / temperature).exp().reshape(-1, value.shape[-1])
            drawn = torch.multinomial(flat.cpu(), 1, generator=generator).to(value.device)
            return logp.reshape(-1, value.shape[-1]).gather(1, drawn).sum()
        tokens = value[0, ..., 0].numel()
        noise = torch.randn(value.shape, generator=generator).to(value.device)
        return (F.normalize(value, dim=-1) * noise).sum() * (tokens**-0.5)

    def divergence(self, change: torch.Tensor, dense: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
        """How far `dense + change` is from `dense`. Shape [batch].

        For logits: `T^2 KL(softmax(dense / T) || softmax((dense + change) / T))`, summed over tokens. For features: half the squared
        change of direction, averaged over tokens. Both are computed from the change, so that small ones do not drown in rounding.
        """
        change, dense = change.movedim(self.classes, -1), dense.movedim(self.classes, -1)
        if dense.dtype in (torch.float16, torch.bfloat16):
            change, dense = change.float(), dense.float()
        if self.kind == "logits":
            p = F.softmax(dense / temperature, dim=-1)
            change = torch.where(dense.isinf(), 0.0, change) / temperature  # classes that are masked out stay so
            change = change - (p * change).sum(-1, keepdim=True)
            divergence = torch.log1p((p * (torch.expm1(change) - change)).sum(-1).clamp_min(0))
            return temperature**2 * divergence.reshape(len(divergence), -1).sum(1)
        return 0.5 * Directions.of(dense).change(change).square().sum(-1).reshape(len(dense), -1).mean(1)


def divergence(terms: Sequence[OutputTerm], outputs: Sequence[Any], dense: Sequence[Any]) -> torch.Tensor:
    """How far a program's flat outputs are from the dense one's, summed over the outputs that count. Shape [batch], float64."""
    found = [term.divergence(outputs[term.index] - dense[term.index], dense[term.index]) for term in terms]
    return torch.stack(found).double().sum(0)


class Coverage:
    """What part of a model's classes some data reach, 0 to 1: 1 is what as many independent samples of equally likely classes would reach.

    Reached is the effective number of classes of the mean prediction: the reciprocal of the sum of its squares (Simpson's index), which
    long tails of small probabilities hardly change. That sum is expected to be `q / n + (1 - 1 / n) / k` for `n` independent predictions of
    `k` classes, `q` being the mean sum of squares of one. The least of several outputs counts; features, and classes whose number differs
    between batches (positions), count 1.
    """

    def __init__(self, terms: Sequence[OutputTerm]) -> None:
        self._seen: dict[OutputTerm, list[_Predictions]] = {term: [] for term in terms if term.kind == "logits"}

    def add(self, outputs: Sequence[Any]) -> None:
        """Take in a batch's flat outputs."""
        for term, seen in self._seen.items():
            found = _Predictions.of(outputs[term.index].movedim(term.classes, -1))
            if seen and len(seen[-1].sum) == len(found.sum):
                found = seen.pop() + found
            seen.append(found)

    @property
    def value(self) -> float:
        """Of what was taken in so far."""
        return min([1.0, *(seen[0].reached for seen in self._seen.values() if len(seen) == 1)])


@dataclass(frozen=True)
class _Predictions:
    """Of some rows of predictions: how many, their sum `[classes]` and the sum of all squares, float64."""

    rows: int
    sum: torch.Tensor
    squares: float

    @classmethod
    def of(cls, logits: torch.Tensor) -> _Predictions:
        shares = F.softmax(logits.float(), dim=-1).reshape(-1, logits.shape[-1])
        return cls(len(shares), shares.sum(0, dtype=torch.float64), float(shares.square_().sum(dtype=torch.float64)))

    def __add__(self, other: _Predictions) -> _Predictions:
        return _Predictions(self.rows + other.rows, self.sum + other.sum, self.squares + other.squares)

    @property
    def reached(self) -> float:
        independent = self.squares / self.rows**2 + (1 - 1 / self.rows) / len(self.sum)
        return independent / float((self.sum / self.rows).square().sum())


def output_terms(program: Program) -> tuple[OutputTerm, ...]:
    """Outputs called logits, if any; else a single output that a linear layer makes; else all floating outputs as features."""
    nodes = next(n for n in program.graph_module.graph.nodes if n.op == "output").args[0]
    flat = list(nodes) if isinstance(nodes, (list, tuple)) else [nodes]
    names = _names(program, len(flat))
    found = []
    for i, node in enumerate(flat):
        fake = node.meta.get("val") if isinstance(node, torch.fx.Node) else None
        state = i in program.state_outputs and len(program.state_outputs) < len(flat)
        if isinstance(fake, torch.Tensor) and fake.is_floating_point() and fake.dim() >= 2 and not state:
            found.append((i, names[i], node, fake))
    named = [f for f in found if f[1].endswith("logits")]
    made = [f for f in found if _made_by_contraction(program, f[2])]
    if named or (len(found) == 1 and made):
        chosen, kind = (named, "logits") if named else (made, "logits")
    else:
        chosen, kind = found, "features"
    terms = []
    for i, name, _, fake in chosen:
        classes = 1 if fake.dim() >= 4 else fake.dim() - 1
        one = isinstance(fake.shape[classes], int) and fake.shape[classes] == 1
        terms.append(OutputTerm(i, name, "features" if one else kind, classes))
    return tuple(terms)


def _made_by_contraction(program: Program, node: Any) -> bool:
    applied = analyse(program).applied.get(node.name)
    return applied is not None and bool(applied.line.macs)


def _names(program: Program, count: int) -> list[str]:
    spec = program.exported.call_spec.out_spec
    names = [str(i) for i in range(count)]
    if spec is None or spec.num_leaves != count:
        return names
    tree = pytree.tree_unflatten(list(range(count)), spec)
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            for leaf in pytree.tree_leaves(value):
                names[leaf] = str(key)
    return names

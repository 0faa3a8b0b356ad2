"""The trajectory criterion of OPTIN (Khaki & Plataniotis, ICLR 2024), estimated for all units at once by random probes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F

from optin_fx.data import Batch, first_batches
from optin_fx.gradients import Rows, gate_gradients
from optin_fx.interpreter import Runner
from optin_fx.layers import Layer
from optin_fx.masks import token_mask
from optin_fx.outputs import output_terms
from optin_fx.program import Program
from optin_fx.trajectory import TrajectoryPass

Scalar = tuple[str, torch.Tensor]


@dataclass(frozen=True)
class ScoreTrajectorySketch(TrajectoryPass):
    """`I_u = sum_z w_z L_MD(z) + lambda * KL`, each to second order in the gate of u, label-free.

    `L_MD(z) = |M(F_z) - M(F'_z)|_F^2 / T^2` compares the cosine Gram matrices of a sample's T tokens (or positions) after layer
    z; KL compares the outputs. Removing u changes M by its derivative D_u at the gate, to first order, so `L_MD = |D_u|_F^2`;
    and for a probe V of independent standard normal entries the squared gate gradient of `<V, M>` has the mean
    `|D_u|_F^2`, for every unit at once. KL is half the Fisher information, by labels drawn from the model's outputs. Gram
    matrices are taken within a sample, so that one backward pass gives an independent estimate per sample. Cost: one forward
    and `2 * probes` backward passes over the data, for any number of units; the exact criterion costs one forward per unit.

    The paper's loss is a mean over samples, of which a few that the model is unsure of can outweigh all others by orders of magnitude. With
    `power=0.5` a sample's scores are divided by the root of their sum over all units: the scores are then those of the mean *root* of a
    sample's loss. Distances count for more so; with logits that are near certain, `lam` should grow with it (docs/scores.md).

    Attributes:
        probes: probes per sample and term.
        power: samples count by their total to this power: 1: the plain mean; 0.5: by the root; 0: all alike.
        most: batches beyond so many samples are left out where `samples` is not given; further ones hardly change the ranking
            (docs/results/sketch.md).
    """

    probes: int = 1
    most: int = field(default=256, kw_only=True)
    depth: str = field(default="mean", kw_only=True)
    power: float = field(default=1.0, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.probes < 1 or self.most < 1:
            raise ValueError("probes and most must be at least 1")
        if not 0 <= self.power <= 1:
            raise ValueError("power is a number between 0 and 1")

    def score(self, program: Program, batches: Sequence[Batch]) -> dict[str, torch.Tensor]:
        """Squared gate gradients of probed Gram matrices and of drawn log-likelihoods."""
        batches = batches if self.samples is not None else first_batches(batches, self.most)
        used, terms, shares = self.used_layers(program), output_terms(program), self.shares(program)
        numbers = {id(batch): number for number, batch in enumerate(batches)}

        def objective(runner: Runner, outputs: list[torch.Tensor], batch: Batch, generator: torch.Generator) -> Iterable[Scalar]:
            mask, number = token_mask(program, batch), numbers[id(batch)]
            for _ in range(self.probes):
                if used:
                    probed = [self._probe(layer, runner.tapped[layer.node], mask, number, generator) for layer in used]
                    yield "distance", torch.stack(probed).sum()
                yield "output", torch.stack([t.log_likelihood(outputs[t.index], generator, self.temperature) for t in terms]).sum()

        def weigh(rows: Rows) -> torch.Tensor:
            squares = {label: {name: own.double().square().sum(1) for name, own in groups.items()} for label, groups in rows.items()}
            totals = torch.stack(list(self._losses(squares, shares).values())).sum(0)
            return torch.where(totals > 0, totals.pow(self.power - 1), 0.0)

        weighed = None if self.power == 1 else weigh
        found = gate_gradients(program, batches, objective, taps=tuple(layer.node for layer in used), weigh=weighed, seed=self.seed)
        return self._losses({label: one.squared for label, one in found.items()}, shares)

    def _losses(self, squares: Mapping[str, Mapping[str, torch.Tensor]], shares: Mapping[str, float]) -> dict[str, torch.Tensor]:
        """Both terms' squared gradients, by objective and group, as losses by group."""
        found: dict[str, torch.Tensor] = {}
        for label, groups in squares.items():
            for name, own in groups.items():
                part = own * (shares.get(name, 1.0) if label == "distance" else 0.5 * self.lam)
                found[name] = found[name] + part if name in found else part
        return found

    def _probe(self, layer: Layer, value: torch.Tensor, mask: torch.Tensor | None, number: int, generator: torch.Generator) -> torch.Tensor:
        features = F.normalize(layer.rows(value).float(), dim=-1)
        if mask is not None and mask.shape == features.shape[:2]:
            features = features * mask.unsqueeze(-1).to(features)
        pick = self.picked(layer, value, number)
        if pick is not None:
            features = features[:, pick]
        n, count, _ = features.shape
        if count == 1:  # one token has no Gram matrix but the constant one: its direction itself is compared
            return (features * torch.randn(features.shape, generator=generator).to(features)).sum()
        probe = torch.randn(n, count, count, generator=generator).to(features)
        return (features * (probe @ features)).sum() / count

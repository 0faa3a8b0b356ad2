"""The trajectory criterion of OPTIN (Khaki & Plataniotis, ICLR 2024), estimated for all units at once by random probes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F

from optin_fx.data import Batch, first_batches
from optin_fx.gradients import gate_gradients
from optin_fx.groups import group
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

    Attributes:
        probes: probes per sample and term.
        most: batches beyond so many samples are left out where `samples` is not given; further ones hardly change the ranking
            (docs/results/sketch.md).
    """

    probes: int = 1
    most: int = field(default=256, kw_only=True)
    depth: str = field(default="mean", kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.probes < 1 or self.most < 1:
            raise ValueError("probes and most must be at least 1")

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

        found = gate_gradients(program, batches, objective, taps=tuple(layer.node for layer in used), seed=self.seed)
        result = {}
        for g in group(program).free:
            none = torch.zeros(g.extent, dtype=torch.float64)
            distance = found["distance"].squared[g.name] if "distance" in found else none
            output = 0.5 * found["output"].squared[g.name] if "output" in found else none
            result[g.name] = distance * shares.get(g.name, 1.0) + self.lam * output
        return result

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

"""The trajectory criterion of OPTIN (Khaki & Plataniotis, ICLR 2024), estimated for all units at once by random probes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from optin_fx.data import Batch
from optin_fx.gradients import gate_gradients
from optin_fx.groups import group
from optin_fx.interpreter import Runner
from optin_fx.layers import Layer, later_layers, layers_of
from optin_fx.masks import token_mask
from optin_fx.outputs import output_terms
from optin_fx.pipeline import ScorePass
from optin_fx.program import Program


@dataclass(frozen=True)
class ScoreTrajectorySketch(ScorePass):
    """`I_u = sum_z w_z L_MD(z) + lambda * KL`, each to second order in the gate of u, label-free.

    `L_MD(z) = |M(F_z) - M(F'_z)|_F^2 / T^2` compares the cosine Gram matrices of a sample's T tokens (or positions) after layer
    z; KL compares the outputs. Removing u changes M by its derivative D_u at the gate, to first order, so `L_MD = |D_u|_F^2`;
    and for a probe V of independent standard normal entries the squared gate gradient of `<V, M>` has the mean
    `|D_u|_F^2`, for every unit at once. KL is half the Fisher information, by labels drawn from the model's outputs. Gram
    matrices are taken within a sample, so that one backward pass gives an independent estimate per sample. Cost: one forward
    and `2 * probes` backward passes over the data, for any number of units; the exact criterion costs one forward per unit.

    Attributes:
        probes: probes per sample and term.
        depth: which later layers count: "sum" (the paper), "mean" over a unit's later layers, "last" only.
        lam: weight of the KL term, on the scale given above (both terms are means per sample).
        tokens: at most so many tokens per sample enter a Gram matrix; the same ones for every unit.
        seed: of probes, tokens and drawn labels.
    """

    probes: int = 1
    depth: str = "mean"
    lam: float = 1.0
    tokens: int = 128
    seed: int = 0

    def __post_init__(self) -> None:
        if self.depth not in ("sum", "mean", "last"):
            raise ValueError(f"depth is one of sum, mean, last; not {self.depth!r}")
        if self.probes < 1 or self.tokens < 2:
            raise ValueError("probes must be at least 1 and tokens at least 2")

    def score(self, program: Program, batches: Sequence[Batch]) -> dict[str, torch.Tensor]:
        """Squared gate gradients of probed Gram matrices and of drawn log-likelihoods."""
        layers = layers_of(program)
        used = layers[-1:] if self.depth == "last" else layers
        terms = output_terms(program)

        def objective(
            runner: Runner, outputs: list[torch.Tensor], batch: Batch, generator: torch.Generator
        ) -> Iterable[tuple[str, torch.Tensor]]:
            mask = token_mask(program, batch)
            for _ in range(self.probes):
                if used:
                    yield "distance", torch.stack([self._probe(layer, runner.tapped[layer.node], mask, generator) for layer in used]).sum()
                yield "output", torch.stack([term.log_likelihood(outputs[term.index], generator) for term in terms]).sum()

        found = gate_gradients(program, batches, objective, taps=tuple(layer.node for layer in used), seed=self.seed)
        later = later_layers(program, used) if self.depth == "mean" else {}
        result = {}
        for g in group(program).free:
            none = torch.zeros(g.extent, dtype=torch.float64)
            distance = found["distance"].squared[g.name] if "distance" in found else none
            output = 0.5 * found["output"].squared[g.name] if "output" in found else none
            result[g.name] = distance / max(later.get(g.name, 1), 1) + self.lam * output
        return result

    def _probe(self, layer: Layer, value: torch.Tensor, mask: torch.Tensor | None, generator: torch.Generator) -> torch.Tensor:
        features = F.normalize(layer.rows(value).float(), dim=-1)
        if mask is not None and mask.shape == features.shape[:2]:
            features = features * mask.unsqueeze(-1).to(features)
        n, count, _ = features.shape
        if count > self.tokens:
            features = features[:, torch.randperm(count, generator=generator)[: self.tokens]]
            count = self.tokens
        if count == 1:  # one token has no Gram matrix but the constant one: its direction itself is compared
            return (features * torch.randn(features.shape, generator=generator).to(features)).sum()
        probe = torch.randn(n, count, count, generator=generator).to(features)
        return (features * (probe @ features)).sum() / count

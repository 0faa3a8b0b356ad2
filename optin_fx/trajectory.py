"""The trajectory loss of OPTIN: how far a change has pushed the later layers' token geometry and the outputs.

For a sample with T tokens, layer z's features F_z `[T, features]` with rows of unit length, and M_z = F_z F_z^T, the cosine Gram matrix:

    L = sum_z w_z |M_z - M'_z|_F^2 / T^2  +  lam * D(outputs, outputs')

M' and outputs' are those of the changed model. w_z is 1 ("sum", the paper's form), one over the number of layers that the change can
reach ("mean"), or 1 for the last layer alone ("last"). D is KL of the logits at a temperature, or the change of direction of features.
A token is an entry of all dims but the batch and the features: a token of a text, a patch, a position of a feature map. Padding, where
the model takes an attention mask, does not count. Of many tokens, `tokens` are drawn once per batch, the same for every unit. A layer
with a single token has no geometry between tokens; its direction itself is compared. L is a mean over samples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from optin_fx.data import Batch
from optin_fx.directions import Directions
from optin_fx.layers import Layer, chosen_layers, later_layers
from optin_fx.masks import token_mask
from optin_fx.outputs import OutputTerm, output_terms
from optin_fx.pipeline import ScorePass
from optin_fx.program import Program

DEPTHS = ("sum", "mean", "last")


@dataclass(frozen=True)
class TrajectoryPass(ScorePass):
    """What all passes that measure the trajectory loss let one choose; the loss is defined in `optin_fx.trajectory`.

    Attributes:
        depth: which later layers count: "sum" (the paper), "mean" over a unit's later layers, "last" only.
        lam: weight of the output term, one constant for all units; both terms are means over samples.
        temperature: of the output term's distributions.
        tokens: at most so many tokens per sample enter a Gram matrix; the same ones for every unit.
        layers: names, module paths or nodes whose tensors are compared, as shell patterns, several joined by "+"; "" for the blocks that
            `optin-fx score MODEL --show-layers` lists.
        seed: of the tokens, and of whatever else is drawn.
    """

    abstract = True

    depth: str = field(default="sum", kw_only=True)
    lam: float = field(default=1.0, kw_only=True)
    temperature: float = field(default=1.0, kw_only=True)
    tokens: int = field(default=128, kw_only=True)
    layers: str = field(default="", kw_only=True)
    seed: int = field(default=0, kw_only=True)

    def __post_init__(self) -> None:
        if self.depth not in DEPTHS:
            raise ValueError(f"depth is one of {', '.join(DEPTHS)}; not {self.depth!r}")
        if self.tokens < 2 or self.temperature <= 0:
            raise ValueError("tokens must be at least 2, temperature more than 0")

    def used_layers(self, program: Program) -> tuple[Layer, ...]:
        """The layers that count, in graph order."""
        return chosen_layers(program, [part.strip() for part in self.layers.split("+") if part.strip()], self.depth)

    def shares(self, program: Program) -> Mapping[str, float]:
        """By group, what a later layer's distance is multiplied with."""
        later = later_layers(program, self.used_layers(program))
        return {name: 1.0 / max(count, 1) if self.depth == "mean" else 1.0 for name, count in later.items()}

    def picked(self, layer: Layer, value: torch.Tensor, number: int) -> torch.Tensor | None:
        """Numbers of the tokens of a layer's output that count in a batch, or None for all."""
        count = layer.rows(value).shape[1]
        if count <= self.tokens:
            return None
        return torch.randperm(count, generator=torch.Generator().manual_seed(self.seed * 1_000_003 + number))[: self.tokens]


@dataclass(frozen=True)
class Tokens:
    """A layer's dense rows that count, to compare changed ones with.

    Attributes:
        picked: which tokens; None: all.
        count: of all tokens.
        directions: of the picked rows, `[batch, tokens, features]`.
        weight: one where a row counts and zero where it is padding, `[batch, tokens, 1]`; None: all count.
    """

    layer: Layer
    picked: torch.Tensor | None
    count: int
    directions: Directions
    weight: torch.Tensor | None

    @classmethod
    def of(cls, layer: Layer, value: torch.Tensor, picked: torch.Tensor | None, mask: torch.Tensor | None) -> Tokens:
        """From a layer's dense output and the batch's mask of tokens."""
        rows = layer.rows(value)
        counts = mask.unsqueeze(-1).to(rows) if mask is not None and mask.shape == rows.shape[:2] and not bool(mask.all()) else None
        if picked is not None:
            rows, counts = rows[:, picked], None if counts is None else counts[:, picked]
        return cls(layer, picked, layer.rows(value).shape[1], Directions.of(rows), counts)

    def distance(self, change: torch.Tensor) -> torch.Tensor:
        """`|M - M'|_F^2 / T^2`, `[batch]`: with rows f and their change e, `M' - M = (f + e/2) e^T + e (f + e/2)^T`."""
        moved = self.layer.rows(change)
        e = self.directions.change(moved if self.picked is None else moved[:, self.picked])
        if self.weight is not None:
            e = e.mul_(self.weight)  # a row of e that is zero leaves nothing of its f
        if self.count == 1:
            return e.square().sum((1, 2))
        half = torch.add(self.directions.units, e, alpha=0.5) @ e.mT
        if self.weight is not None:
            half = half * self.weight
        return (half + half.mT).square().mean((1, 2))


@dataclass(frozen=True)
class Reference:
    """A dense run's features and outputs, to compare changes with.

    Attributes:
        tokens: by layer's node.
    """

    options: TrajectoryPass
    terms: tuple[OutputTerm, ...]
    tokens: Mapping[str, Tokens]
    outputs: Sequence[torch.Tensor]

    @classmethod
    def of(
        cls,
        options: TrajectoryPass,
        program: Program,
        batch: Batch,
        number: int,
        tapped: Mapping[str, torch.Tensor],
        outputs: Sequence[torch.Tensor],
    ) -> Reference:
        """From the results of a dense run of batch `number`."""
        mask, found = token_mask(program, batch), {}
        for layer in options.used_layers(program):
            value = tapped[layer.node]
            found[layer.node] = Tokens.of(layer, value, options.picked(layer, value, number), mask)
        return cls(options, output_terms(program), found, outputs)

    @property
    def device(self) -> torch.device:
        """Where the run was."""
        rows = (tokens.directions.units for tokens in self.tokens.values())
        return next((t.device for t in (*rows, *self.outputs) if isinstance(t, torch.Tensor)), torch.device("cpu"))

    def loss(self, changed: Mapping[str, torch.Tensor], outputs: Mapping[int, torch.Tensor], share: float) -> torch.Tensor:
        """L of every sample, `[batch]`, from the changes at layers and outputs; what is left out did not change."""
        total = torch.zeros((), device=self.device)
        for node, tokens in self.tokens.items():
            if node in changed:
                total = total + share * tokens.distance(changed[node])
        for term in self.terms:
            if term.index in outputs and self.options.lam:
                total = total + self.options.lam * term.divergence(outputs[term.index], self.outputs[term.index], self.options.temperature)
        return total

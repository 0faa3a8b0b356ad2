"""The trajectory criterion of OPTIN (Khaki & Plataniotis, ICLR 2024), measured unit by unit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import fx
from torch.utils import _pytree as pytree

from optin_fx.analysis import analyse
from optin_fx.data import Batch, rows
from optin_fx.dims import Axis
from optin_fx.finite import refuse_non_finite
from optin_fx.groups import Group, group, leaf_names
from optin_fx.interpreter import Runner, flat_inputs
from optin_fx.layers import Layer, later_layers, layers_of
from optin_fx.masks import token_mask
from optin_fx.outputs import OutputTerm, output_terms
from optin_fx.pipeline import ScorePass
from optin_fx.program import Program


@dataclass(frozen=True)
class ScoreTrajectory(ScorePass):
    """`I_u = sum_{z later} L_MD(z) + lambda * KL`, by gating unit u off and running on.

    `L_MD(z) = |M(F_z) - M(F'_z)|_F^2 / T^2` compares the cosine Gram matrices of a sample's T tokens (or positions) after
    layer z, dense against gated, averaged over samples; KL is the divergence of the gated outputs from the dense ones.
    Unlike the public code: the same tokens for every candidate, padding left out, one constant lambda, no weights by
    index, no mask left on between candidates. Cost: one forward of the part of the graph behind the unit, per unit and batch.
    Nothing before the first place that reads a unit is run again, and `candidates` units share one call, stacked along the batch
    with a gate each; both leave the values as they are.

    Attributes:
        depth: which later layers count: "sum" (the paper), "mean" over a unit's later layers, "last" only.
        lam: weight of the output term.
        tokens: at most so many tokens per sample enter a Gram matrix; the same ones for every unit.
        candidates: units per call; memory grows with it.
        seed: of the tokens.
    """

    depth: str = "sum"
    lam: float = 1.0
    tokens: int = 128
    candidates: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        if self.depth not in ("sum", "mean", "last"):
            raise ValueError(f"depth is one of sum, mean, last; not {self.depth!r}")
        if self.candidates < 1 or self.tokens < 2:
            raise ValueError("candidates must be at least 1 and tokens at least 2")

    def score(self, program: Program, batches: Sequence[Batch]) -> dict[str, torch.Tensor]:
        """One suffix run per unit, `candidates` at a time."""
        layers = layers_of(program)
        used = layers[-1:] if self.depth == "last" else layers
        later = later_layers(program, used) if self.depth == "mean" else {}
        free = group(program).free
        sums = {g.name: torch.zeros(g.extent, dtype=torch.float64) for g in free}
        samples = 0
        with torch.no_grad():
            for number, batch in enumerate(batches):
                samples += rows(batch)
                for name, found in self._batch(program, batch, used, later, number).items():
                    sums[name] += found
        return {name: value / samples for name, value in sums.items()}

    def _batch(
        self, program: Program, batch: Batch, layers: Sequence[Layer], later: Mapping[str, int], number: int
    ) -> dict[str, torch.Tensor]:
        """Summed losses of every unit over one batch's samples."""
        terms, taps, n = output_terms(program), tuple(layer.node for layer in layers), rows(batch)
        dense = Runner(program, taps=taps)
        outputs = dense(batch)
        refuse_non_finite(program, batch, outputs, number)
        picks = {layer.node: self._pick(layer, dense.tapped[layer.node], number) for layer in layers}
        mask = token_mask(program, batch)
        grams = {layer.node: _gram(layer, dense.tapped[layer.node], picks[layer.node], mask, 1) for layer in layers}
        stacked = stack(batch, self.candidates, n)
        prefix = _Prefix(program, stacked)
        free = {g.name: g for g in group(program).free}
        found: dict[str, torch.Tensor] = {name: torch.zeros(g.extent, dtype=torch.float64) for name, g in free.items()}
        for name, first in first_consumers(program, free):
            environment = prefix.up_to(first)
            g = free[name]
            for start in range(0, g.extent, self.candidates):
                units = range(start, min(start + self.candidates, g.extent))
                gates = torch.ones(self.candidates * n, g.extent)
                for c, unit in enumerate(units):
                    gates[c * n : (c + 1) * n, unit] = 0.0
                runner = Runner(program, gates={name: gates}, taps=taps)
                results = runner.resume(stacked, environment)
                loss = self._losses(layers, runner.tapped, grams, picks, mask, later.get(name, 1)) + self.lam * _divergence(
                    terms, results, outputs, self.candidates
                )
                found[name][start : start + len(units)] = loss.reshape(self.candidates, n).sum(1)[: len(units)].double()
        return found

    def _losses(
        self,
        layers: Sequence[Layer],
        tapped: Mapping[str, torch.Tensor],
        grams: Mapping[str, torch.Tensor],
        picks: Mapping[str, torch.Tensor | None],
        mask: torch.Tensor | None,
        later: int,
    ) -> torch.Tensor:
        """`L_MD` summed over layers, per stacked sample."""
        total: torch.Tensor = torch.zeros(())
        for layer in layers:
            if layer.node not in tapped:  # it ends before the unit is read
                continue
            gram = _gram(layer, tapped[layer.node], picks[layer.node], mask, self.candidates)
            reference = grams[layer.node].repeat(self.candidates, 1, 1)
            total = total + (gram - reference).square().mean((1, 2))
        return total / max(later, 1)

    def _pick(self, layer: Layer, value: torch.Tensor, number: int) -> torch.Tensor | None:
        count = layer.rows(value).shape[1]
        if count <= self.tokens:
            return None
        return torch.randperm(count, generator=torch.Generator().manual_seed(self.seed + number))[: self.tokens]


def stack(batch: Batch, times: int, n: int) -> Batch:
    """The batch `times` over, along its leading dim."""

    def again(leaf: object) -> object:
        return torch.cat([leaf] * times) if isinstance(leaf, torch.Tensor) and leaf.dim() and leaf.shape[0] == n else leaf

    args, kwargs = pytree.tree_map(again, (batch.args, dict(batch.kwargs)))
    return Batch(args, kwargs)


def first_consumers(program: Program, free: Mapping[str, Group]) -> list[tuple[str, str]]:
    """(group, first node that reads it) in graph order: what comes before is the same for all of the group's units."""
    names: Mapping[Axis, str] = leaf_names(analyse(program))
    found: dict[str, str] = {}
    order = {node.name: i for i, node in enumerate(program.graph_module.graph.nodes)}
    for consumer in analyse(program).consumers():
        for leaf in consumer.leaves:
            name = names.get(leaf, "")
            if name in free and (name not in found or order[consumer.node] < order[found[name]]):
                found[name] = consumer.node
    return sorted(found.items(), key=lambda item: order[item[1]])


class _Prefix:
    """The dense run of the stacked batch, advanced node by node and shared by all candidates behind it."""

    def __init__(self, program: Program, stacked: Batch) -> None:
        self.runner = Runner(program)
        self.nodes = list(program.graph_module.graph.nodes)
        self.place = {node.name: i for i, node in enumerate(self.nodes)}
        self.last = {value: i for i, node in enumerate(self.nodes) for value in node.all_input_nodes}
        self.values: dict[fx.Node, object] = {}
        self.flat = iter(flat_inputs(program, stacked))
        self.at = 0

    def up_to(self, name: str) -> dict[fx.Node, object]:
        """Values of everything before a node; None for what nothing behind it reads."""
        stop = self.place[name]
        while self.at < stop:
            node = self.nodes[self.at]
            self.runner.env = self.values
            self.values[node] = next(self.flat) if node.op == "placeholder" else self.runner.run_node(node)
            for value in node.all_input_nodes:
                if self.last[value] <= self.at:
                    self.values[value] = None
            self.at += 1
        return dict(self.values)


def _gram(layer: Layer, value: torch.Tensor, pick: torch.Tensor | None, mask: torch.Tensor | None, times: int) -> torch.Tensor:
    """Cosine Gram matrices `[samples, T, T]`; of a single token the direction itself, `[samples, 1, features]`, scaled alike."""
    features = F.normalize(layer.rows(value), dim=-1)
    if mask is not None and mask.shape[1] == features.shape[1]:
        features = features * mask.repeat(times, 1).unsqueeze(-1).to(features)
    if pick is not None:
        features = features[:, pick]
    if features.shape[1] == 1:
        return features * features.shape[-1] ** 0.5
    return features @ features.mT


def _divergence(terms: Sequence[OutputTerm], outputs: list[torch.Tensor], dense: list[torch.Tensor], times: int) -> torch.Tensor:
    total: torch.Tensor = torch.zeros(())
    for term in terms:
        reference = dense[term.index]
        total = total + term.divergence(outputs[term.index], reference.repeat(times, *[1] * (reference.dim() - 1)))
    return total

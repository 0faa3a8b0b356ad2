"""The error that compensation would leave, as a criterion: choice and compensation agree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from functools import partial

import torch

from optin_fx.analysis import Consumer, analyse
from optin_fx.data import Batch
from optin_fx.dims import Axis
from optin_fx.elimination import Elimination, removal_order, scores_of_curve
from optin_fx.execution import accumulate
from optin_fx.groups import group, leaf_of
from optin_fx.interpreter import Runner, consumers_by_node
from optin_fx.masks import token_mask
from optin_fx.moments import INPUT_SUMS, Moments, input_sums
from optin_fx.pipeline import ScorePass, as_tuples, find_criterion, scores_within
from optin_fx.program import Program
from optin_fx.refittable import Layer, layer_of
from optin_fx.rows import chosen_rows
from optin_fx.scores import Scores
from optin_fx.sensitivity import Sensitivity, sensitivities
from optin_fx.units import unit_of_position


@dataclass(frozen=True)
class ScoreReconstruction(ScorePass):
    """What is lost when a unit goes *after* the units before it and the consumers were refitted: Optimal Brain Surgeon, unit by unit.

    Within a group units are removed greedily, each time the one whose removal leaves the least error at the group's consumers
    given the best refit of what stays (ZipLM, OSSCAR; `optin_fx.elimination`); a unit's score is what it added. An error at
    a consumer counts by the squared gradient of the output at its rows and features, so that errors of different layers are
    comparable to second order. As that neglects what errors of several rows do together, each group's curve is scaled so that its
    single-unit losses without any compensation sum to those of `within`, a criterion that measures at the gates. Groups
    without a consumer that can be refitted keep that criterion's scores.
    Cost: `within`, unless the scores at hand are its; one forward and backward, one forward for covariances, O(d^3) per consumer of d
    inputs.

    Attributes:
        within: criterion that sets the scale between groups; empty for none.
        allocate: what a unit is worth beside those of other groups: "curve", what it added when it went; or "within", that criterion's
            values of the group, the least for the unit that goes first.
        floor: share of its sample's mean weight that every row has at least, where `within` sets the scale.
        ridge: damping of the covariances, as a share of their mean diagonal.
        chunk: share of a group's units that are removed between two updates of the matrices.
        rows: at most so many rows per batch enter a covariance.
        draws: labels drawn per sample for the gradients.
        kinds: kinds of groups that are scored so; the others keep the values of `within`. Empty for all.
        seed: of labels and rows.
    """

    within: str = "trajectory-sketch"
    allocate: str = "curve"
    floor: float = 0.1
    ridge: float = 1e-2
    chunk: float = 0.02
    rows: int = 4096
    draws: int = 1
    seed: int = 0
    kinds: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        as_tuples(self, "kinds")
        if self.allocate not in ("curve", "within") or (self.allocate == "within" and not self.within):
            raise ValueError("allocate is curve, or within, which needs a criterion")

    def score(self, program: Program, batches: Sequence[Batch]) -> dict[str, torch.Tensor]:
        """Marginal losses along each group's removal order."""
        return self.score_after(program, batches, None)

    def score_after(self, program: Program, batches: Sequence[Batch], earlier: Scores | None) -> dict[str, torch.Tensor]:
        """The same; where the earlier scores are those of `within`, they are taken as they are."""
        found = self._within(program, batches, earlier)
        with torch.no_grad():
            leaves = {g: leaf_of(analyse(program), g.name) for g in group(program).free_of(self.kinds)}
            layers = _layers(program, set(leaves.values()))
            features = {node: layer.output_dim(layer.node.meta["val"].dim()) for node, (_, layer) in layers.items()}
            seen = sensitivities(program, batches, features, draws=self.draws, seed=self.seed)
            moments = self._moments(program, batches, layers, seen)
            for g, leaf in leaves.items():
                consumers = [c for node in layers for c in self._consumers(program, leaf, *layers[node], moments[node], seen[node])]
                if not consumers:
                    continue
                order, added = removal_order([c for c, _ in consumers], g.extent, max(1, round(self.chunk * g.extent)))
                scale = 1.0
                if self.within:
                    scale = float(found[g.name].clamp_min(0).sum()) / max(sum(alone for _, alone in consumers), 1e-30)
                if self.allocate == "within":
                    found[g.name] = torch.empty_like(found[g.name]).index_copy_(0, torch.tensor(order), found[g.name].sort().values)
                else:
                    found[g.name] = scale * scores_of_curve(order, added)
        return found

    def _within(self, program: Program, batches: Sequence[Batch], earlier: Scores | None) -> dict[str, torch.Tensor]:
        if not self.within:
            return {g.name: torch.zeros(g.extent, dtype=torch.float64) for g in group(program).free}
        return scores_within(find_criterion(self.within, f"{self.name()}, option within"), program, batches, earlier)

    def _moments(
        self, program: Program, batches: Sequence[Batch], layers: Mapping[str, tuple[Consumer, Layer]], seen: Mapping[str, Sensitivity]
    ) -> dict[str, list[Moments]]:
        """Per consumer and block, moments of its inputs; rows count by their squared gradients."""

        def step(number: int, batch: Batch) -> dict[str, torch.Tensor]:
            sums: dict[str, torch.Tensor] = {}
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + number)
            Runner(program, observe=partial(self._add, sums, layers, seen, generator, number, token_mask(program, batch)))(batch)
            return sums

        found = accumulate("covariances", batches, step)
        return {
            node: [Moments.of_inputs(**{name: found[f"{node}/{block}/{name}"] for name in INPUT_SUMS}) for block in range(layer.groups)]
            for node, (_, layer) in layers.items()
        }

    def _add(
        self,
        sums: dict[str, torch.Tensor],
        layers: Mapping[str, tuple[Consumer, Layer]],
        seen: Mapping[str, Sensitivity],
        generator: torch.Generator,
        batch: int,
        mask: torch.Tensor | None,
        consumer: Consumer,
        value: torch.Tensor,
        *_: object,
    ) -> None:
        if consumer.node not in layers or layers[consumer.node][0] != consumer:
            return
        layer, own = layers[consumer.node][1], seen[consumer.node]
        weights = own.weights(batch, self.floor) if self.within else own.rows[batch]
        index = chosen_rows(len(weights), mask, value, self.rows, generator)
        x = layer.inputs_of(value, index).float()
        share = len(weights) / max(len(index), 1) if mask is None else 1.0
        for block, part in enumerate(x.chunk(layer.groups, 1)):
            sums |= {f"{consumer.node}/{block}/{name}": value for name, value in input_sums(part, weights[index] * share).items()}

    def _consumers(
        self, program: Program, leaf: Axis, consumer: Consumer, layer: Layer, moments: Sequence[Moments], seen: Sensitivity
    ) -> list[tuple[Elimination, float]]:
        """The consumer's blocks that read a group, each with what its units lose one by one and uncompensated."""
        if leaf not in consumer.leaves:
            return []
        applied = analyse(program).applied[consumer.node]
        axis = analyse(program).axes[applied.call.operands[consumer.operand].node.name][consumer.dim]
        units = unit_of_position(axis, leaf).repeat_interleave(layer.repeats)
        weight = layer.matrix()[0] * (seen.features / seen.features.sum().clamp_min(1e-30)).sqrt()[:, None]
        found = []
        for own, rows, block in zip(moments, weight.chunk(layer.groups), units.chunk(layer.groups), strict=True):
            columns = [torch.nonzero(block == unit).flatten() for unit in range(leaf.size)]
            if own.count <= 0 or len({len(c) for c in columns}) != 1 or not len(columns[0]):
                continue  # a group of convolution groups: whole blocks go, nothing is left that could make up for them
            mine = torch.stack(columns)
            second = own.xx / max(seen.count, 1)
            alone = (second * (rows.T @ rows))[mine[:, :, None], mine[:, None, :]].sum()
            covariance = own.centred()[2] * (own.count / max(seen.count, 1))
            found.append((Elimination.of(rows, covariance, mine, self.ridge, own.rows), float(alone)))
        return found


def _layers(program: Program, leaves: Set[Axis]) -> dict[str, tuple[Consumer, Layer]]:
    """Consumers of some groups' units whose weights can be solved for, by node, in graph order."""
    nodes = {node.name: node for node in program.graph_module.graph.nodes}
    found = {}
    for name, consumers in consumers_by_node(analyse(program)).items():
        layer = layer_of(nodes[name], program.graph_module)
        if isinstance(layer, Layer) and consumers[0].operand == 0 and not leaves.isdisjoint(consumers[0].leaves):
            found[name] = (consumers[0], layer)
    return found

"""Trajectory losses of single units, exactly: each gated off alone, several at once in one call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.utils import _pytree as pytree

from optin_fx.analysis import analyse
from optin_fx.available import bytes_to_use
from optin_fx.data import Batch, has_fixed_rows, rows, take
from optin_fx.finite import refuse_non_finite
from optin_fx.frontier import first_reads
from optin_fx.groups import Group, group
from optin_fx.interpreter import device_of
from optin_fx.offload import store_of
from optin_fx.products import packed_bytes
from optin_fx.program import Program
from optin_fx.suffix import Rerun, Suffix, can_subtract
from optin_fx.trajectory import Reference, TrajectoryPass


@dataclass(frozen=True)
class Part:
    """Samples that are measured together.

    Attributes:
        number: of the batch that they are from.
        at_once: candidates that share one call, stacked along the batch.
    """

    number: int
    batch: Batch
    at_once: int


def parts_of(program: Program, batches: Sequence[Batch], most: int) -> list[Part]:
    """The batches, cut and stacked so that what is kept of a dense run fits in memory.

    The losses are sums over samples, so they stay the same.

    Args:
        most: candidates per call, at most.
    """
    found = []
    for number, batch in enumerate(batches):
        n, fits = rows(batch), rows(batch)
        if not has_fixed_rows(program):
            fits = max(1, (bytes_to_use(device_of(program)) - bytes_of_copies(program)) // bytes_per_sample(program, batch))
        at_once = min(most, fits // n) if fits >= 2 * n and not has_fixed_rows(program) else 1
        found += [Part(number, take(batch, start, min(start + fits, n)), at_once) for start in range(0, n, min(fits, n))]
    return found


def bytes_per_sample(program: Program, batch: Batch) -> int:
    """Memory that one sample takes: what is kept of its dense run, and a few of the largest values on the way of a change."""
    few = take(batch, 0, min(2, rows(batch)))
    kept = Suffix(program, few)
    largest = max(
        (v.numel() * v.element_size() for n, v in kept.values.items() if n.op != "get_attr" and isinstance(v, torch.Tensor)), default=1
    )
    return max(1, (kept.bytes + 4 * largest) // rows(few))


def bytes_of_copies(program: Program) -> int:
    """Memory of a second copy of the weights, for speed; 0 where it would take more than a quarter of what there is, and is not made."""
    copies = packed_bytes([tensor for tensor in program.tensors.values() if tensor.dim() == 2]) if store_of(program) is None else 0
    return copies if copies <= bytes_to_use(device_of(program)) // 4 else 0


class Candidates:
    """Losses of units over one part.

    Raises:
        ScoreError: the model's outputs are not finite.
    """

    def __init__(self, options: TrajectoryPass, program: Program, part: Part, precision: str) -> None:
        self.part, self.n = part, rows(part.batch)
        self.extents = {g.name: g.extent for g in group(program).free}
        self.shares = options.shares(program)
        self.taps = [layer.node for layer in options.used_layers(program)]
        stacked = stack(part.batch, part.at_once)
        if can_subtract(program):
            self.dense: Suffix | Rerun = Suffix(program, stacked, self.taps, precision, packed=bytes_of_copies(program) > 0)
        else:
            self.dense = Rerun(program, stacked, self.taps)
        refuse_non_finite(program, part.batch, self.dense.outputs, part.number)
        self.reference = Reference.of(options, program, stacked, part.number, self.dense.tapped, self.dense.outputs)

    def losses(self, name: str, units: Sequence[int]) -> torch.Tensor:
        """Of at most `part.at_once` units, summed over the part's samples. `[units]` float64."""
        gates = torch.ones(self.part.at_once * self.n, self.extents[name], device=self.reference.device)
        for c, unit in enumerate(units):
            gates[c * self.n : (c + 1) * self.n, unit] = 0.0
        with torch.no_grad():
            changes = self.dense.behind(name, gates, self.taps)
            loss = self.reference.loss(changes.taps, changes.outputs, self.shares.get(name, 1.0))
        return loss.double().expand(self.part.at_once * self.n).reshape(self.part.at_once, self.n).sum(1)[: len(units)].cpu()


def stack(batch: Batch, times: int) -> Batch:
    """The batch `times` over, along its leading dim."""
    n = rows(batch)

    def again(leaf: object) -> object:
        return torch.cat([leaf] * times) if isinstance(leaf, torch.Tensor) and leaf.dim() and leaf.shape[0] == n else leaf

    args, kwargs = pytree.tree_map(again, (batch.args, dict(batch.kwargs)))
    return Batch(args, kwargs)


def in_graph_order(program: Program, free: Sequence[Group]) -> list[Group]:
    """Groups by the first node that reads them."""
    at = first_reads(program, analyse(program).consumers())
    return sorted(free, key=lambda g: at.get(g.name, len(program.graph_module.graph.nodes)))


def work_behind(program: Program) -> dict[str, float]:
    """By group, the share of the graph's nodes behind its first consumer: about what measuring one unit costs, for the time left."""
    count = len(program.graph_module.graph.nodes)
    return {name: 1.0 - place / count for name, place in first_reads(program, analyse(program).consumers()).items()}

"""The trajectory criterion of OPTIN (Khaki & Plataniotis, ICLR 2024), measured unit by unit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from optin_fx.candidates import Candidates, in_graph_order, parts_of, work_behind
from optin_fx.data import Batch, rows
from optin_fx.execution import accumulate
from optin_fx.groups import group
from optin_fx.program import Program
from optin_fx.trajectory import TrajectoryPass

Item = tuple[int, str, int, int]  # part, group, first unit, end


@dataclass(frozen=True)
class ScoreTrajectory(TrajectoryPass):
    """`I_u = L(unit u gated off)`, the trajectory loss: `sum_z later |M_z - M'_z|_F^2 / T^2 + lam * KL`; see `optin_fx.trajectory`.

    Unlike the public code: the same tokens for every unit, padding left out, one constant lambda, a temperature that divides the logits, no
    weights by index, no mask left on between candidates, any architecture. Cost: for each unit, the part of one forward that its
    change reaches. Made cheaper without another value: the dense run is kept and only changes are computed (`optin_fx.suffix`), a linear
    layer multiplies a gated-off unit's own columns only, and small batches share one call, stacked.

    Attributes:
        candidates: units per call, at most; fewer where memory does not allow more.
        precision: "full", or "bf16" for the products of changes with weights: about 1.4 times faster where the processor has it, with
            relative errors of about 1e-2 in single scores.
    """

    candidates: int = 16
    precision: str = "full"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.candidates < 1 or self.precision not in ("full", "bf16"):
            raise ValueError("candidates must be at least 1, precision is full or bf16")

    def score(self, program: Program, batches: Sequence[Batch]) -> dict[str, torch.Tensor]:
        """The loss of every unit, `candidates` at a time."""
        free, work = in_graph_order(program, group(program).free), work_behind(program)
        parts = parts_of(program, batches, self.candidates)
        extents = {g.name: g.extent for g in free}
        items: list[Item] = [
            (p, g.name, start, min(start + part.at_once, g.extent))
            for p, part in enumerate(parts)
            for g in free
            for start in range(0, g.extent, part.at_once)
        ]
        latest: dict[int, Candidates] = {}

        def step(_: int, item: Item) -> dict[str, torch.Tensor]:
            p, name, start, stop = item
            if p not in latest:
                latest.clear()  # before the next one is made: two would not fit
                latest[p] = Candidates(self, program, parts[p], self.precision)
            found = torch.zeros(extents[name], dtype=torch.float64)
            found[start:stop] = latest[p].losses(name, range(start, stop))
            return {name: found}

        sums = accumulate("units", items, step, weight=lambda item: work.get(item[1], 1.0) * rows(parts[item[0]].batch))
        samples = sum(rows(batch) for batch in batches)
        return {name: value / samples for name, value in sums.items()}

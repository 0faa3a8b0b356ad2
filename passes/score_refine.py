"""Sketched trajectory scores, with exact ones where a plan is decided: near the cut."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from optin_fx import ranks
from optin_fx.candidates import Candidates, Part, parts_of
from optin_fx.data import Batch, rows
from optin_fx.execution import accumulate
from optin_fx.passes.score_trajectory_sketch import ScoreTrajectorySketch
from optin_fx.passes.search_rank import SearchRank
from optin_fx.program import Program
from optin_fx.scores import Scores
from optin_fx.trajectory import TrajectoryPass

ROUND = 16
"""Units that are measured before the clock is read again."""

Unit = tuple[str, int]


@dataclass(frozen=True)
class ScoreRefine(TrajectoryPass):
    """`trajectory-sketch`, then `trajectory` for the units nearest to the cut, as many as a time limit allows.

    A plan changes only where scores change sides of the cut, so exactness is spent there. The cut is where `search-rank` would put it for
    `budget`; units are taken in the order of |log(score / score at their group's cut)|. The sketch sees the loss to second
    order, so all of a group's sketched scores are multiplied by the median of exact over sketched of those that were measured. Cost: the
    sketch's, and then a part of one forward per unit and batch until the time is over; a round of 16 units is not cut short.

    Attributes:
        seconds: time for exact scores. units: at most so many of them; a limit that, unlike time, gives the same result everywhere.
        budget: of the plan that the scores are for.
        probes: of the sketch.
        candidates: as for `score-trajectory`.
    """

    seconds: float = 60.0
    units: int | None = None
    budget: str = "flops <= 50%"
    probes: int = 1
    candidates: int = 16
    depth: str = field(default="mean", kw_only=True)

    def score(self, program: Program, batches: Sequence[Batch]) -> dict[str, torch.Tensor]:
        """The sketch, round by round corrected."""
        shared = {name: getattr(self, name) for name in ("depth", "lam", "temperature", "tokens", "layers", "seed", "probes")}
        sketch = ScoreTrajectorySketch(**shared).score(program, batches)
        order = nearest_to_cut(program, sketch, self.budget)[: self.units]
        parts, exact, longest = parts_of(program, batches, self.candidates), dict[Unit, float](), 0.0
        latest: dict[int, Candidates] = {}
        deadline = time.monotonic() + self.seconds
        for start in range(0, len(order), ROUND):
            began = time.monotonic()
            if any(ranks.gathered(began + longest >= deadline)):
                break
            exact |= self._measured(program, parts, latest, order[start : start + ROUND], start)
            longest = max(longest, time.monotonic() - began)
        samples = sum(rows(batch) for batch in batches)
        return corrected(sketch, {unit: value / samples for unit, value in exact.items()})

    def _measured(
        self, program: Program, parts: Sequence[Part], latest: dict[int, Candidates], units: Sequence[Unit], start: int
    ) -> dict[Unit, float]:
        """Exact losses of some units, summed over all samples."""
        by_group: dict[str, list[int]] = {}
        for name, unit in units:
            by_group.setdefault(name, []).append(unit)
        items = [
            (p, name, own[i : i + part.at_once])
            for p, part in enumerate(parts)
            for name, own in by_group.items()
            for i in range(0, len(own), part.at_once)
        ]

        def step(_: int, item: tuple[int, str, list[int]]) -> dict[str, torch.Tensor]:
            p, name, own = item
            if p not in latest:
                latest.clear()
                latest[p] = Candidates(self, program, parts[p], "full")
            losses = latest[p].losses(name, own)
            return {f"{name}/{unit}": loss for unit, loss in zip(own, losses, strict=True)}

        found = accumulate(f"units{start}", items, step)
        return {(name, unit): float(found[f"{name}/{unit}"]) for name, unit in units}


def nearest_to_cut(program: Program, values: Mapping[str, torch.Tensor], budget: str) -> list[Unit]:
    """Units of groups that a plan under the budget cuts, the closest to their group's cut first."""
    plan = SearchRank(budget=budget).search(program, Scores(values, "score-refine", program.fingerprint))
    distances: list[tuple[float, str, int]] = []
    for name, value in values.items():
        kept = len(plan.kept[name]) if name in plan.kept else len(value)
        if not 0 < kept < len(value):
            continue
        logs = value.clamp_min(1e-30).log()
        ordered = logs.sort(descending=True).values
        cut = float(ordered[kept - 1] + ordered[kept]) / 2
        distances += [(abs(float(log) - cut), name, unit) for unit, log in enumerate(logs)]
    return [(name, unit) for _, name, unit in sorted(distances)]


def corrected(sketch: Mapping[str, torch.Tensor], exact: Mapping[Unit, float]) -> dict[str, torch.Tensor]:
    """Exact scores where there are any; the others times their group's median of exact over sketched."""
    result = {}
    for name, value in sketch.items():
        own = {unit: score for (group, unit), score in exact.items() if group == name}
        ratios = [score / float(value[unit]) for unit, score in own.items() if float(value[unit]) > 0]
        fresh = value.double() * float(torch.tensor(ratios, dtype=torch.float64).median() if ratios else 1.0)
        for unit, score in own.items():
            fresh[unit] = score
        result[name] = fresh
    return result

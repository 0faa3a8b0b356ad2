"""`Plan`: which units of each group stay. It says nothing else, so it cannot be illegal; and it is a JSON file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from optin_fx.analysis import Analysis, analyse
from optin_fx.dims import Axis, fold
from optin_fx.errors import LoadError, PlanError
from optin_fx.groups import Groups, group, leaf_names
from optin_fx.program import Program


@dataclass(frozen=True)
class Plan:
    """Kept units of every group that shrinks.

    Attributes:
        kept: group name to the indices of the units that stay, ascending. Groups that are not named stay whole.
        extents: dense extents of the named groups.
        fingerprint: structure of the program that the plan was made for.
        predicted: predicted costs, with units in the keys (flops, params, bytes).
        provenance: JSON-able facts: score, budget, search, versions.
    """

    kept: Mapping[str, tuple[int, ...]]
    extents: Mapping[str, int]
    fingerprint: str
    predicted: Mapping[str, float] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        """The plan as JSON text."""
        facts = {
            "format": 1,
            "fingerprint": self.fingerprint,
            "extents": dict(self.extents),
            "kept": {name: list(units) for name, units in self.kept.items()},
            "predicted": dict(self.predicted),
            "provenance": dict(self.provenance),
        }
        return json.dumps(facts, indent=1)

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """Read a plan from JSON text (or from the path of a file that holds it).

        Raises:
            LoadError: the text is not a plan.
        """
        if not text.lstrip().startswith("{") and Path(text).is_file():
            text = Path(text).read_text()
        try:
            facts = json.loads(text)
            kept = {str(name): tuple(int(u) for u in units) for name, units in facts["kept"].items()}
            return cls(kept, dict(facts["extents"]), str(facts["fingerprint"]), facts.get("predicted", {}), facts.get("provenance", {}))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise LoadError(f"not a plan: {error}", fix="write plans with plan.to_json()") from error

    def __str__(self) -> str:
        width = max((len(name) for name in self.kept), default=0)
        lines = [f"plan for program {self.fingerprint}: {len(self.kept)} groups shrink"]
        lines += [f"  {name:<{width}}  {len(units):>6} of {self.extents[name]}" for name, units in self.kept.items()]
        return "\n".join(lines)


def make_plan(program: Program, kept: Mapping[str, Any], **facts: Any) -> Plan:
    """A plan from units per group (any integer sequence); units are sorted, whole groups are left out.

    Raises:
        PlanError: see `check`.
    """
    groups = group(program)
    units = {name: tuple(sorted(int(u) for u in indices)) for name, indices in kept.items()}
    units = {name: u for name, u in units.items() if name not in groups or len(u) != groups[name].extent}
    if program.allow:
        facts["provenance"] = {**facts.get("provenance", {}), "allow": sorted(program.allow)}
    plan = Plan(units, {name: groups[name].extent for name in units if name in groups}, groups.fingerprint, **facts)
    check(plan, groups)
    return plan


def check(plan: Plan, groups: Groups) -> None:
    """Refuse a plan that does not fit the groups.

    Raises:
        PlanError: it was made for another model, names a pinned group, keeps nothing, or names units that do not exist.
    """
    if plan.fingerprint != groups.fingerprint:
        raise PlanError(
            "the plan belongs to another model",
            at=f"plan {plan.fingerprint}, program {groups.fingerprint}",
            so="its unit numbers mean nothing here",
            fix="make a plan for this program with ofx.search, or trace the model that the plan was made for",
        )
    for name, units in plan.kept.items():
        if name not in groups:
            raise PlanError(f"the plan names a group that does not exist: {name!r}", fix="print(ofx.group(program)) lists the names")
        found = groups[name]
        if found.pinned is not None:
            raise PlanError(f"the group {name!r} cannot shrink", at=found.pinned, fix="leave it out of the plan")
        if not units and found.removable:
            continue
        if not units:
            raise PlanError(
                f"the plan keeps no unit of {name!r}", so="its consumers would have nothing to read", fix="keep at least one unit"
            )
        if len(units) < found.least:
            raise PlanError(
                f"the plan keeps {len(units)} of the units of {name!r}",
                so=f"the model chooses {found.least} of them",
                fix=f"keep at least {found.least}",
            )
        if min(units) < 0 or max(units) >= found.extent or len(set(units)) != len(units) or list(units) != sorted(units):
            raise PlanError(
                f"the plan's units of {name!r} are not ascending indices below {found.extent}",
                fix="make plans with ofx.make_plan, which sorts them",
            )


def random_plan(program: Program, keep: float = 0.5, seed: int = 0, *, empty: float = 0.0) -> Plan:
    """Keep a random share of the units of every group, at least one each.

    Args:
        keep: expected share of units to keep; each group's own share is drawn between 0 and twice this (at most 1).
        seed: of the draw.
        empty: probability that a group whose branch can disappear loses every unit.
    """
    generator = torch.Generator().manual_seed(seed)
    kept = {}
    for found in group(program).free:
        share = min(1.0, 2 * keep * float(torch.rand((), generator=generator)))
        count = max(found.least, round(share * found.extent))
        kept[found.name] = torch.randperm(found.extent, generator=generator)[:count].tolist()
        if empty and found.removable and float(torch.rand((), generator=generator)) < empty:
            kept[found.name] = []
    return make_plan(program, kept, provenance={"search": f"random{{keep={keep}, seed={seed}}}"})


class Cut:
    """What stays of any axis, as positions, as a mask or as a count, when some leaves keep only some units."""

    def __init__(self, analysis: Analysis, kept: Mapping[Axis, torch.Tensor]) -> None:
        self.analysis, self.kept = analysis, dict(kept)
        self._sizes: dict[Axis, int] = {}

    def units(self, leaf: Axis) -> torch.Tensor | None:
        """Units of a leaf that stay; None for all."""
        return self.kept.get(leaf)

    def mask(self, leaf: Axis) -> torch.Tensor | None:
        """Ones and zeros over a leaf's units; None for all ones."""
        kept = self.kept.get(leaf)
        return None if kept is None else torch.zeros(leaf.size).index_fill_(0, kept, 1.0)

    def size(self, axis: Axis) -> int:
        """The new extent of an axis (with the primes of symbolic extents in it)."""
        root = axis.root()
        found = self._sizes.get(root)
        if found is None:
            found = self._sizes[root] = fold(root, self._leaf_size, _product, lambda values: sum(values))
        return found

    def _leaf_size(self, leaf: Axis) -> int:
        kept = self.kept.get(leaf)
        return leaf.size if kept is None else len(kept)


def resolve(program: Program, plan: Plan) -> Cut:
    """A plan in terms of the axes of its program.

    Raises:
        PlanError: see `check`.
    """
    check(plan, group(program))
    analysis = analyse(program)
    units = {leaf: plan.kept[name] for leaf, name in leaf_names(analysis).items() if name in plan.kept}
    return Cut(analysis, {leaf: torch.tensor(kept, dtype=torch.long) for leaf, kept in units.items()})


def _product(values: list[int]) -> int:
    result = 1
    for value in values:
        result *= value
    return result

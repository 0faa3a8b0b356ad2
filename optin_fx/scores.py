"""`Scores`: one number per unit of every prunable group; higher means keep."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from optin_fx.errors import LoadError, ScoreError
from optin_fx.files import saving
from optin_fx.groups import Groups
from optin_fx.program import Program


@dataclass(frozen=True)
class Scores:
    """Scores by group name.

    Attributes:
        values: group name to a float64 tensor of shape [extent], higher = keep.
        method: text form of the scoring pass, `score-fisher{samples=512}`.
        fingerprint: structure of the program that was scored.
        additive: True where scores estimate a loss, so that they may be added up and compared across groups as they are.
        extra: further tensors that refinements use (per-sample gate gradients, ...), by name.
        provenance: JSON-able facts.
    """

    values: Mapping[str, torch.Tensor]
    method: str
    fingerprint: str
    additive: bool = True
    extra: Mapping[str, torch.Tensor] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __getitem__(self, name: str) -> torch.Tensor:
        if name not in self.values:
            raise ScoreError(f"no scores for the group {name!r}", fix=f"scored are: {', '.join(list(self.values)[:5])}, ...")
        return self.values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.values)

    def __len__(self) -> int:
        return len(self.values)

    def __str__(self) -> str:
        width = max((len(name) for name in self.values), default=0)
        lines = [f"{self.method} for program {self.fingerprint}: {len(self.values)} groups"]
        for name, v in self.values.items():
            lines.append(f"  {name:<{width}}  {len(v):>6} units  min {v.min():.3e}  median {v.median():.3e}  max {v.max():.3e}")
        return "\n".join(lines)

    def normalised(self, how: str, program: Program) -> Scores:
        """The scores made comparable between groups in a named way; what a search then ranks across all groups.

        Args:
            how: one of
                none
                mean: divided by the group's mean
                max: divided by the group's largest
                sum: to a sum of one per group, so that a unit among many counts less
                z: deviations from the group's mean
                rank: the place within the group, from 0 to 1
                kind: divided by the mean over all groups of a kind: heads and neurons meet at one scale, layers keep their differences
                flops: divided by what one unit costs in the dense program

        Raises:
            ScoreError: there is no such way.
        """
        from optin_fx.normalising import normalised

        return self if how == "none" else replace(self, values=normalised(self.values, how, program), additive=False)

    def save(self, path: str | Path) -> Path:
        """Write a safetensors file; the facts are in its metadata.

        Raises:
            SaveError: the place cannot be written.
        """
        from safetensors.torch import save_file

        path = Path(path)
        tensors = {f"score/{name}": v.contiguous() for name, v in self.values.items()}
        tensors |= {f"extra/{name}": v.contiguous() for name, v in self.extra.items()}
        facts = {"method": self.method, "fingerprint": self.fingerprint, "additive": self.additive, "provenance": dict(self.provenance)}
        with saving("the scores", path):
            save_file(tensors, path, metadata={"optin_fx": json.dumps(facts)})
        return path

    @classmethod
    def load(cls, path: str | Path) -> Scores:
        """Read a file that `save` wrote.

        Raises:
            LoadError: it is missing or not such a file.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(str(path), framework="pt") as file:
                facts = json.loads((file.metadata() or {})["optin_fx"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  no iterator
        except (OSError, KeyError, ValueError, SafetensorError) as error:
            raise LoadError(f"not a file of scores: {error}", at=str(path), fix="write scores with scores.save(path)") from error
        parts: dict[str, dict[str, torch.Tensor]] = {"score": {}, "extra": {}}
        for name, value in tensors.items():
            kind, _, rest = name.partition("/")
            parts[kind][rest] = value
        return cls(parts["score"], facts["method"], facts["fingerprint"], facts["additive"], parts["extra"], facts["provenance"])


def check(scores: Scores, groups: Groups) -> None:
    """Refuse scores that do not fit the groups.

    Raises:
        ScoreError: they were made for another model, a group is missing or of another extent, or a value is not finite.
    """
    if scores.fingerprint != groups.fingerprint:
        raise ScoreError(
            "the scores belong to another model",
            at=f"scores {scores.fingerprint}, program {groups.fingerprint}",
            fix="score this program with ofx.score",
        )
    for found in groups.free:
        if found.name not in scores.values:
            raise ScoreError(f"no scores for the group {found.name!r}", fix="score all prunable groups, or pin this one")
        value = scores.values[found.name]
        if tuple(value.shape) != (found.extent,):
            raise ScoreError(
                f"scores of {found.name!r} have shape {tuple(value.shape)}, its extent is {found.extent}", fix="give one score per unit"
            )
        if not torch.isfinite(value).all():
            bad = int((~torch.isfinite(value)).sum())
            raise ScoreError(
                f"{bad} of {found.extent} scores of {found.name!r} are NaN or infinite",
                so="units cannot be ranked",
                fix="look for non-finite activations in the calibration data, or use float32",
            )

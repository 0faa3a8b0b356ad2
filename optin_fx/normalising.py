"""Ways to make scores of different groups comparable. Each says what it assumes; none is right for all models."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from optin_fx.costs import cost_model
from optin_fx.errors import ScoreError
from optin_fx.groups import group
from optin_fx.program import Program

Values = Mapping[str, torch.Tensor]


def normalised(values: Values, how: str, program: Program) -> dict[str, torch.Tensor]:
    """Scores by group, normalised; see `Scores.normalised` for the ways.

    Raises:
        ScoreError: there is no such way.
    """
    if how in WITHIN:
        return {name: WITHIN[how](value.double()) for name, value in values.items()}
    if how == "kind":
        return _by_kind(values, program)
    if how == "flops":
        return _by_cost(values, program)
    raise ScoreError(f"scores cannot be normalised by {how!r}", fix=f"choose one of: none, {', '.join(WITHIN)}, kind, flops")


def _safe(divisor: torch.Tensor) -> torch.Tensor:
    return torch.where(divisor.abs() < 1e-30, torch.ones_like(divisor), divisor)


def _ranks(value: torch.Tensor) -> torch.Tensor:
    places = torch.empty_like(value)
    places[torch.argsort(value, stable=True)] = torch.arange(len(value), dtype=value.dtype)
    return (places + 0.5) / len(value)


WITHIN: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "mean": lambda value: value / _safe(value.mean()),
    "max": lambda value: value / _safe(value.max()),
    "sum": lambda value: value / _safe(value.sum()),
    "z": lambda value: (value - value.mean()) / _safe(value.std(correction=0)),
    "rank": _ranks,
}
"""Ways that look at one group alone."""


def _by_kind(values: Values, program: Program) -> dict[str, torch.Tensor]:
    kinds = {g.name: g.kind for g in group(program)}
    pooled: dict[str, list[torch.Tensor]] = {}
    for name, value in values.items():
        pooled.setdefault(kinds[name], []).append(value.double())
    means = {kind: _safe(torch.cat(parts).mean()) for kind, parts in pooled.items()}
    return {name: value.double() / means[kinds[name]] for name, value in values.items()}


def _by_cost(values: Values, program: Program) -> dict[str, torch.Tensor]:
    model = cost_model(program)
    extents = {name: float(extent) for name, extent in model.dense.items()}
    return {name: value.double() / max(2.0 * model.macs.derivative(name, extents), 1.0) for name, value in values.items()}

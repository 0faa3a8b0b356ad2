"""Per-sample gradients at the gates, summed up in the ways that criteria need: what removing each unit would change, to first order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from optin_fx.data import Batch, rows
from optin_fx.errors import ScoreError
from optin_fx.execution import ROWS, accumulate
from optin_fx.finite import refuse_non_finite, why_not_finite
from optin_fx.groups import group
from optin_fx.interpreter import Runner, device_of
from optin_fx.program import Program

Objective = Callable[[Runner, list[torch.Tensor], Batch, torch.Generator], Iterable[tuple[str, torch.Tensor]]]
"""From a finished run, its outputs and its batch to (name, scalar) pairs, one backward pass each. Each scalar is a sum over samples, of
which every term depends on its sample alone. Random numbers come from the generator, which is seeded by the batch's number."""


@dataclass(frozen=True)
class GateGradients:
    """Means over samples and draws of an objective's gate gradients `g`, `[extent]` float64 by group.

    Attributes:
        count: samples times draws.
        mean: of g. absolute: of |g|. squared: of g^2.
        samples: g itself, `[count, extent]` float32, where it was asked for.
    """

    count: int
    mean: Mapping[str, torch.Tensor]
    absolute: Mapping[str, torch.Tensor]
    squared: Mapping[str, torch.Tensor]
    samples: Mapping[str, torch.Tensor] = field(default_factory=dict)


def gate_gradients(
    program: Program,
    batches: Sequence[Batch],
    objective: Objective,
    *,
    taps: tuple[str, ...] = (),
    keep_samples: bool = False,
    seed: int = 0,
) -> dict[str, GateGradients]:
    """Gate gradients of every objective that `objective` names. Gates of ones with a row per sample make them per sample.

    Cost: one forward pass, and one backward pass for each scalar.

    Args:
        taps: nodes whose results the objective reads, in `runner.tapped`.
        keep_samples: also keep the gradients of every sample.
        seed: of the objective's random numbers.

    Raises:
        ScoreError: an objective is not a scalar, or an output or gradient is not finite; names the node that made it so.
    """

    def step(number: int, batch: Batch) -> dict[str, torch.Tensor]:
        return _of_batch(program, batch, objective, taps, keep_samples, number, seed)

    found = accumulate("gradients", batches, step)
    labels = dict.fromkeys(name.split("/")[1] for name in found if name.startswith("count/"))
    return {label: _means(program, found, label) for label in labels}


def _of_batch(
    program: Program, batch: Batch, objective: Objective, taps: tuple[str, ...], keep_samples: bool, number: int, seed: int
) -> dict[str, torch.Tensor]:
    free, n = group(program).free, rows(batch)
    gates = {g.name: torch.ones(n, g.extent, requires_grad=True, device=device_of(program)) for g in free}
    runner = Runner(program, gates=gates, taps=taps)
    sums: dict[str, torch.Tensor] = {}

    def add(name: str, value: torch.Tensor) -> None:
        sums[name] = sums[name] + value if name in sums else value

    with torch.enable_grad():
        outputs = runner(batch)
        refuse_non_finite(program, batch, outputs, number)
        generator = torch.Generator().manual_seed(seed * 1_000_003 + number)
        pending = list(objective(runner, outputs, batch, generator))
    for i, (label, value) in enumerate(pending):
        if value.dim():
            raise ScoreError(f"the objective {label!r} has shape {tuple(value.shape)}", fix="return a scalar, summed over samples")
        if not value.requires_grad:
            raise ScoreError(
                f"the objective {label!r} does not depend on the model's outputs",
                so="it has no gradient at any unit",
                fix="compute it from the outputs that it is given, without detach() or no_grad()",
            )
        found = torch.autograd.grad(value, list(gates.values()), retain_graph=i + 1 < len(pending), allow_unused=True)
        add(f"count/{label}", torch.tensor(float(n)))
        for name, gradient in zip(gates, found, strict=True):
            if gradient is None:
                gradient = torch.zeros_like(gates[name])
            if not torch.isfinite(gradient).all():
                raise ScoreError(
                    f"a gradient at the gates of {name!r} is not finite",
                    at=f"batch {number}, objective {label}",
                    so="its units cannot be ranked",
                    fix=why_not_finite(program, batch),
                )
            double = gradient.double()
            add(f"mean/{label}/{name}", double.sum(0))
            add(f"absolute/{label}/{name}", double.abs().sum(0))
            add(f"squared/{label}/{name}", double.square().sum(0))
            if keep_samples:
                key = f"{ROWS}{label}/{name}"
                sums[key] = torch.cat([sums[key], gradient.float()]) if key in sums else gradient.float()
    return sums


def _means(program: Program, found: Mapping[str, torch.Tensor], label: str) -> GateGradients:
    count = int(found[f"count/{label}"])
    free = group(program).free
    means = {kind: {g.name: found[f"{kind}/{label}/{g.name}"] / count for g in free} for kind in ("mean", "absolute", "squared")}
    samples = {g.name: found[f"{ROWS}{label}/{g.name}"] for g in free if f"{ROWS}{label}/{g.name}" in found}
    return GateGradients(count, means["mean"], means["absolute"], means["squared"], samples)

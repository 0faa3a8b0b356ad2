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
from optin_fx.interpreter import Runner
from optin_fx.program import Program
from optin_fx.tapes import Cutter, FrozenRunner, Losses, Taped, gradients, ones

Objective = Callable[[Runner, list[torch.Tensor], Batch, torch.Generator], Iterable[tuple[str, torch.Tensor]]]
"""From a finished run, its outputs and its batch to (name, scalar) pairs, one backward pass each. Each scalar is a sum over samples, of
which every term depends on its sample alone. Random numbers come from the generator, which is seeded by the batch's number."""

Rows = Mapping[str, Mapping[str, torch.Tensor]]
"""Gate gradients of a batch by objective and group, `[samples x draws, extent]`; rows of one number belong together."""

Weigh = Callable[[Rows], torch.Tensor]
"""From a batch's gradients to how much each row's squares count, `[samples x draws]` float64."""


@dataclass(frozen=True)
class GateGradients:
    """Means over samples and draws of an objective's gate gradients `g`, `[extent]` float64 by group.

    Attributes:
        count: samples times draws.
        mean: of g. absolute: of |g|. squared: of g^2, each row weighed where that was asked for.
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
    weigh: Weigh | None = None,
    seed: int = 0,
) -> dict[str, GateGradients]:
    """Gate gradients of every objective that `objective` names. Gates of ones with a row per sample make them per sample.

    Cost: one forward pass, and one backward pass for each scalar; another forward pass where a batch is cut to save memory
    (`optin_fx.tapes`), which changes no gradient.

    Args:
        taps: nodes whose results the objective reads, in `runner.tapped`.
        keep_samples: also keep the gradients of every sample.
        weigh: how much the squares of each sample count; all alike without.
        seed: of the objective's random numbers.

    Raises:
        ScoreError: an objective is not a scalar, or an output or gradient is not finite; names the node that made it so.
    """
    cutter = Cutter(program, taps)

    def step(number: int, batch: Batch) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + number)

        def losses(runner: FrozenRunner, outputs: list[torch.Tensor]) -> list[tuple[str, torch.Tensor]]:
            refuse_non_finite(program, batch, outputs, number)
            return _checked(objective(runner, outputs, batch, generator))

        return _of_batch(cutter, batch, number, losses, keep_samples, weigh)

    found = accumulate("gradients", batches, step)
    labels = dict.fromkeys(name.split("/")[1] for name in found if name.startswith("count/"))
    return {label: _means(program, found, label) for label in labels}


def _of_batch(
    cutter: Cutter, batch: Batch, number: int, losses: Losses, keep_samples: bool, weigh: Weigh | None
) -> dict[str, torch.Tensor]:
    program, sums = cutter.program, dict[str, torch.Tensor]()
    each: dict[str, dict[str, torch.Tensor]] = {}

    def add(name: str, value: torch.Tensor) -> None:
        sums[name] = sums[name] + value if name in sums else value

    for part, label, found in gradients(cutter, batch, lambda piece: _taped(cutter, piece), losses):
        count = part.stop - part.start
        add(f"count/{label}", torch.tensor(float(count)))
        for g, gradient in zip(group(program).free, found, strict=True):
            if not torch.isfinite(gradient).all():
                raise ScoreError(
                    f"a gradient at the gates of {g.name!r} is not finite",
                    at=f"batch {number}, objective {label}",
                    so="its units cannot be ranked",
                    fix=why_not_finite(program, batch),
                )
            double = gradient.double()
            add(f"mean/{label}/{g.name}", double.sum(0))
            add(f"absolute/{label}/{g.name}", double.abs().sum(0))
            if weigh is None:
                add(f"squared/{label}/{g.name}", double.square().sum(0))
            if keep_samples or weigh is not None:
                own = each.setdefault(label, {})
                own[g.name] = torch.cat([own[g.name], gradient.float()]) if g.name in own else gradient.float()
    if weigh is not None and each:
        counts = weigh(each)
        for label, groups in each.items():
            sums |= {f"squared/{label}/{name}": counts @ own.double().square() for name, own in groups.items()}
    if keep_samples:
        sums |= {f"{ROWS}{label}/{name}": own for label, groups in each.items() for name, own in groups.items()}
    return sums


def _taped(cutter: Cutter, batch: Batch) -> Taped:
    """A run with a gate of its own for every sample and unit."""
    gates = ones(cutter.program, rows(batch))
    runner = FrozenRunner(cutter.program, gates=gates, taps=cutter.taps)
    return Taped(runner, runner(batch), list(gates.values()))


def _checked(found: Iterable[tuple[str, torch.Tensor]]) -> list[tuple[str, torch.Tensor]]:
    pending = list(found)
    for label, value in pending:
        if value.dim():
            raise ScoreError(f"the objective {label!r} has shape {tuple(value.shape)}", fix="return a scalar, summed over samples")
        if not value.requires_grad:
            raise ScoreError(
                f"the objective {label!r} does not depend on the model's outputs",
                so="it has no gradient at any unit",
                fix="compute it from the outputs that it is given, without detach() or no_grad()",
            )
    return pending


def _means(program: Program, found: Mapping[str, torch.Tensor], label: str) -> GateGradients:
    count = int(found[f"count/{label}"])
    free = group(program).free
    means = {kind: {g.name: found[f"{kind}/{label}/{g.name}"] / count for g in free} for kind in ("mean", "absolute", "squared")}
    samples = {g.name: found[f"{ROWS}{label}/{g.name}"] for g in free if f"{ROWS}{label}/{g.name}" in found}
    return GateGradients(count, means["mean"], means["absolute"], means["squared"], samples)

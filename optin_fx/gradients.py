"""Squared per-sample gradients at the gates: what removing each unit would change, for all units at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch

from optin_fx.data import Batch, rows
from optin_fx.errors import ScoreError
from optin_fx.groups import group
from optin_fx.interpreter import Runner
from optin_fx.program import Program

Objective = Callable[[Runner, list[torch.Tensor], Batch], Iterable[tuple[str, torch.Tensor]]]
"""From a finished run and its outputs to (name, scalar) pairs; each scalar is a sum over samples, one backward pass each."""


def squared_gate_gradients(
    program: Program,
    batches: Sequence[Batch],
    objective: Objective,
    *,
    taps: tuple[str, ...] = (),
    keep_samples: bool = False,
) -> dict[str, dict[str, torch.Tensor]]:
    """Per objective name and group, the mean over samples and draws of the squared per-sample gate gradient.

    Args:
        keep_samples: also return the gradients themselves, under `"<name>/samples"`, `[samples x draws, extent]` float32.

    Returns:
        `{name: {group: [extent] float64}}`.

    Raises:
        ScoreError: an objective is not a scalar, or a gradient is not finite.
    """
    free = group(program).free
    names = [g.name for g in free]
    sums: dict[str, dict[str, torch.Tensor]] = {}
    kept: dict[str, dict[str, list[torch.Tensor]]] = {}
    counts: dict[str, int] = {}
    for number, batch in enumerate(batches):
        n = rows(batch)
        gates = {g.name: torch.ones(n, g.extent, requires_grad=True) for g in free}
        runner = Runner(program, gates=gates, taps=taps)
        with torch.enable_grad():
            outputs = runner(batch)
            if any(isinstance(o, torch.Tensor) and torch.isnan(o).any() for o in outputs):
                raise ScoreError(
                    "the model's outputs contain NaN",
                    at=f"batch {number}",
                    so="units cannot be ranked",
                    fix=first_non_finite(program, batch),
                )
            pending = list(objective(runner, outputs, batch))
        for i, (label, value) in enumerate(pending):
            if value.dim():
                raise ScoreError(f"the objective {label!r} has shape {tuple(value.shape)}", fix="return a scalar, summed over samples")
            found = torch.autograd.grad(value, [gates[k] for k in names], retain_graph=i + 1 < len(pending), allow_unused=True)
            counts[label] = counts.get(label, 0) + n
            for name, gradient in zip(names, found, strict=True):
                if gradient is None:
                    continue
                if not torch.isfinite(gradient).all():
                    raise ScoreError(
                        f"a gradient at the gates of {name!r} is not finite",
                        at=f"batch {number}, objective {label}",
                        so="its units cannot be ranked",
                        fix=first_non_finite(program, batch),
                    )
                squared = gradient.double().square().sum(0)
                own = sums.setdefault(label, {})
                own[name] = own[name] + squared if name in own else squared
                if keep_samples:
                    kept.setdefault(f"{label}/samples", {}).setdefault(name, []).append(gradient.float())
    result = {
        label: {g.name: own.get(g.name, torch.zeros(g.extent, dtype=torch.float64)) / counts[label] for g in free}
        for label, own in sums.items()
    }
    for label, groups in kept.items():
        result[label] = {name: torch.cat(parts) for name, parts in groups.items()}
    return result


def first_non_finite(program: Program, batch: Batch) -> str:
    """Names the first node whose result is not finite, as advice for an error."""

    class Watch(Runner):
        found = ""

        def run_node(self, n: torch.fx.Node) -> object:
            result = super().run_node(n)
            if not self.found and isinstance(result, torch.Tensor) and result.is_floating_point() and torch.isnan(result).any():
                self.found = n.name
            return result

    watch = Watch(program)
    with torch.no_grad():
        watch(batch)
    return (
        f"the first NaN is made by %{watch.found}; mend the data or the model there"
        if watch.found
        else "activations are finite: use float32 or float64"
    )

"""Where a program's output notices an error: squared gradients of its outputs at the results of chosen nodes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch._ops import OpOverload

from optin_fx.data import Batch
from optin_fx.data import rows as leading
from optin_fx.interpreter import Runner
from optin_fx.outputs import output_terms
from optin_fx.program import Program


@dataclass(frozen=True)
class Sensitivity:
    """Squared gradients of a drawn log-likelihood at one node's result.

    Attributes:
        rows: per batch, the sum over features at every row, in the order of `Layer.rows`: all dims but the feature's, flattened.
        features: the sum over all rows, `[features]` float64.
        samples: per batch, the number of samples, of which every one has as many rows.
    """

    rows: list[torch.Tensor]
    features: torch.Tensor
    samples: list[int]

    @property
    def count(self) -> int:
        """Number of samples."""
        return sum(self.samples)

    def weights(self, batch: int, floor: float) -> torch.Tensor:
        """How much each row of a batch counts within its sample, `[rows]`, one in the mean; at least `floor`.

        Every sample counts the same: where the model is sure of its answer all gradients are small, and what is small everywhere says
        nothing about where errors matter.
        """
        rows = self.rows[batch]
        if rows.numel() % self.samples[batch]:
            return torch.ones_like(rows)
        own = rows.reshape(self.samples[batch], -1)
        mean = own.mean(1, keepdim=True)
        return (floor + (1 - floor) * torch.where(mean > 0, own / mean, 1.0)).flatten()


class _Tapped(Runner):
    """Lets gradients begin at the tapped nodes, also in a model of which no parameter requires one."""

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if n.name in self.wanted and isinstance(result, torch.Tensor):
            if not result.requires_grad:
                result = self.tapped[n.name] = result.detach().requires_grad_()
            if any(isinstance(user.target, OpOverload) and user.target._schema.is_mutable for user in n.users):
                return result.clone()  # what an in-place op changes is no longer what was tapped
        return result


def sensitivities(
    program: Program, batches: Sequence[Batch], features: Mapping[str, int], *, draws: int = 1, seed: int = 0
) -> dict[str, Sensitivity]:
    """Squared gradients at some nodes' results; one forward and `draws` backward passes over the data.

    The label is drawn from the model's own output (see `outputs.OutputTerm.log_likelihood`), so the squared gradient is the diagonal of
    the Fisher information of that result: half of it times a squared error is the divergence of the output, to second order.

    Args:
        features: node name to the dim of its result that holds the features.
    """
    generator = torch.Generator().manual_seed(seed)
    terms = output_terms(program)
    rows: dict[str, list[torch.Tensor]] = {name: [] for name in features}
    sums: dict[str, torch.Tensor] = {}
    samples: list[int] = []
    for batch in batches:
        runner = _Tapped(program, taps=tuple(features))
        with torch.enable_grad():
            outputs = runner(batch)
        tapped = [runner.tapped[name] for name in features]
        squares = [torch.zeros_like(value) for value in tapped]
        for draw in range(draws):
            with torch.enable_grad():
                value = torch.stack([term.log_likelihood(outputs[term.index], generator) for term in terms]).sum()
            found = torch.autograd.grad(value, tapped, retain_graph=draw + 1 < draws, allow_unused=True)
            for square, gradient in zip(squares, found, strict=True):
                if gradient is not None:
                    square += gradient.square() / draws
        for (name, dim), square in zip(features.items(), squares, strict=True):
            at_end = square.detach().movedim(dim, -1)
            rows[name].append(at_end.sum(-1).flatten())
            own = at_end.reshape(-1, at_end.shape[-1]).double().sum(0)
            sums[name] = sums[name] + own if name in sums else own
        samples.append(leading(batch))
    return {name: Sensitivity(rows[name], sums[name], samples) for name in features}

"""Where a program's output notices an error: squared gradients of its outputs at the results of chosen nodes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch._ops import OpOverload

from optin_fx.data import Batch
from optin_fx.interpreter import Runner
from optin_fx.outputs import output_terms
from optin_fx.program import Program


@dataclass(frozen=True)
class Sensitivity:
    """Squared gradients of a drawn log-likelihood at one node's result.

    Attributes:
        rows: per batch, the sum over features at every row, in the order of `Layer.rows`: all dims but the feature's, flattened.
        features: the sum over all rows, `[features]` float64. count: number of samples.
    """

    rows: list[torch.Tensor]
    features: torch.Tensor
    count: int

    @property
    def mean(self) -> float:
        """Mean over rows of the squared gradient."""
        total = sum(float(rows.double().sum()) for rows in self.rows)
        return total / max(sum(rows.numel() for rows in self.rows), 1)


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
    count = 0
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
        count += len(tapped[0]) if tapped else 0
    return {name: Sensitivity(rows[name], sums[name], count) for name in features}

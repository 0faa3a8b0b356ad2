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
from optin_fx.execution import ROWS, accumulate
from optin_fx.outputs import OutputTerm, output_terms
from optin_fx.program import Program
from optin_fx.tapes import Cutter, FrozenRunner, Taped, gradients


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


class _Tapped(FrozenRunner):
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
    terms, names = output_terms(program), tuple(features)
    cutter = Cutter(program, names)

    def step(number: int, batch: Batch) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + number)
        sums = {}
        for name, square in zip(names, _squares(batch, cutter, terms, draws, generator), strict=True):
            at_end = square.movedim(features[name], -1)
            at_rows = at_end.sum(-1).flatten()
            sums[f"{ROWS}{name}"] = at_rows
            sums[f"{ROWS}{name}/count"] = torch.tensor([len(at_rows)])
            sums[name] = at_end.reshape(-1, at_end.shape[-1]).double().sum(0)
        return sums

    found = accumulate("sensitivities", batches, step)
    samples = [leading(batch) for batch in batches]

    def by_batch(name: str) -> list[torch.Tensor]:
        return list(found[f"{ROWS}{name}"].split(found[f"{ROWS}{name}/count"].tolist()))

    return {name: Sensitivity(by_batch(name), found[name], samples) for name in names}


def _squares(batch: Batch, cutter: Cutter, terms: Sequence[OutputTerm], draws: int, generator: torch.Generator) -> list[torch.Tensor]:
    """Squared gradients of the outputs at the tapped nodes, the mean over draws of a batch's labels."""

    def drawn(_: FrozenRunner, outputs: list[torch.Tensor]) -> list[tuple[str, torch.Tensor]]:
        draw = (torch.stack([t.log_likelihood(outputs[t.index], generator) for t in terms]).sum() for _ in range(draws))
        return [("likelihood", value) for value in draw]

    def taped(piece: Batch) -> Taped:
        runner = _Tapped(cutter.program, taps=cutter.taps)
        outputs = runner(piece)
        return Taped(runner, outputs, [runner.tapped[name] for name in cutter.taps])

    pieces: dict[int, list[torch.Tensor]] = {}
    for part, _, found in gradients(cutter, batch, taped, drawn):
        squares = [gradient.square() / draws for gradient in found]
        earlier = pieces.get(part.start)
        pieces[part.start] = squares if earlier is None else [a + b for a, b in zip(earlier, squares, strict=True)]
    return [own[0] if len(own) == 1 else torch.cat(own) for own in zip(*pieces.values(), strict=True)]

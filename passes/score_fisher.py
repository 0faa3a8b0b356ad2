"""Fisher information of the gates (Kwon et al., NeurIPS 2022)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from optin_fx.data import Batch
from optin_fx.errors import DataError
from optin_fx.gradients import squared_gate_gradients
from optin_fx.interpreter import Runner
from optin_fx.outputs import OutputTerm, output_terms
from optin_fx.pipeline import ScorePass
from optin_fx.program import Program


@dataclass(frozen=True)
class ScoreFisher(ScorePass):
    """`I_u = 1/2 E_n[(dL_n / dz_u)^2]`, the diagonal of the (empirical) Fisher information at gates of one.

    To second order this is the rise of the loss when unit u alone is removed (Kwon et al. 2022, eq. 6-8). Gradients are per
    *sample*; their public code squares the mean gradient of a mini-batch, which depends on the batch size. Cost: one
    forward and `draws` backward passes over the data. With labels it is the empirical Fisher of the cross-entropy; without,
    labels are drawn from the model's own outputs, which gives the true Fisher, twice the KL divergence at second order.

    Attributes:
        labels: "auto" uses the batches' labels if all have them; "given" demands them; "sampled" never uses them.
        draws: labels drawn per sample when they are sampled.
        seed: of the draws.
        loss: a user's own loss, `loss(outputs, labels) -> scalar summed over samples`; outputs are the model's flat outputs.
        keep_samples: keep per-sample gradients for block-Fisher rearrangement.
    """

    labels: str = "auto"
    draws: int = 4
    seed: int = 0
    loss: Callable[[list[torch.Tensor], object], torch.Tensor] | None = None
    keep_samples: bool = False

    def score(self, program: Program, batches: Sequence[Batch]) -> dict[str, torch.Tensor]:
        """Half the mean squared gate gradient."""
        labelled = all(batch.labels is not None for batch in batches)
        if (self.labels == "given" or self.loss is not None) and not labelled:
            missing = next(i for i, batch in enumerate(batches) if batch.labels is None)
            raise DataError(
                "score-fisher was asked to use labels, and a batch has none",
                at=f"batch {missing}",
                fix="add a 'labels' entry to every batch, or use labels=sampled",
            )
        generator = torch.Generator().manual_seed(self.seed)
        terms = output_terms(program)
        use_labels = labelled and self.labels != "sampled"

        def objective(runner: Runner, outputs: list[torch.Tensor], batch: Batch) -> Iterable[tuple[str, torch.Tensor]]:
            if self.loss is not None:
                yield "loss", self.loss(outputs, batch.labels)
            elif use_labels:
                yield "loss", sum_of_cross_entropies(outputs, terms, batch.labels)
            else:
                for _ in range(self.draws):
                    yield "loss", torch.stack([term.log_likelihood(outputs[term.index], generator) for term in terms]).sum()

        found = squared_gate_gradients(program, batches, objective, keep_samples=self.keep_samples)
        result = {name: 0.5 * value for name, value in found["loss"].items()}
        for name, value in found.get("loss/samples", {}).items():
            result[f"extra/gradients/{name}"] = value
        return result


def sum_of_cross_entropies(outputs: list[torch.Tensor], terms: Sequence[OutputTerm], labels: object) -> torch.Tensor:
    """Cross-entropy summed over samples (and tokens) for logits, squared error for features."""
    several = labels if isinstance(labels, (tuple, list)) else [labels]
    total = torch.zeros(())
    for term, target in zip(terms, several, strict=False):
        value = outputs[term.index].movedim(term.classes, -1).float()
        target = torch.as_tensor(target)
        if term.kind == "logits":
            total = total + F.cross_entropy(value.reshape(-1, value.shape[-1]), target.reshape(-1).long(), reduction="sum")
        else:
            total = total + 0.5 * (value.flatten() - target.flatten().to(value.dtype)).square().sum()
    return total

"""First-order Taylor expansion of the loss in the gates (Molchanov et al., ICLR 2017)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from optin_fx.data import Batch
from optin_fx.gradients import gate_gradients
from optin_fx.objectives import Loss, found_loss, of_labels, of_own_answers, use_labels
from optin_fx.pipeline import ScorePass
from optin_fx.program import Program


@dataclass(frozen=True)
class ScoreTaylor(ScorePass):
    """`I_u = |E_n g_nu|` or `E_n |g_nu|`, with g the gradient of sample n's loss at gate u.

    The loss changes by -g when a gate goes from one to zero, to first order; the gate's gradient is the sum of activation times
    gradient over the unit, which is the form that the paper writes. Cost: one forward and one backward pass. At a trained model the mean
    gradient is small, and second order (`score-fisher`) decides: "samples" is the more robust choice, and the default.

    Attributes:
        over: "samples" takes magnitudes before the mean, "mean" after it.
        labels: "auto" uses the batches' labels if all have them; "given" demands them; "own" takes the model's own answers for labels.
        loss: a loss of your own, `loss(outputs, labels) -> scalar summed over samples`, or its place `package.module:function`.
    """

    over: str = "samples"
    labels: str = "auto"
    loss: Loss | str | None = None

    def __post_init__(self) -> None:
        if self.over not in ("samples", "mean") or self.labels not in ("auto", "given", "own"):
            raise ValueError("over is samples or mean; labels is one of auto, given, own")

    def score(self, program: Program, batches: Sequence[Batch]) -> dict[str, torch.Tensor]:
        """Magnitudes of gate gradients."""
        labelled = use_labels(batches, self.labels, demanded=self.loss is not None, needed_for=self.name())
        objective = of_labels(program, found_loss(self.loss)) if labelled else of_own_answers(program)
        found = gate_gradients(program, batches, objective)["loss"]
        return dict(found.absolute) if self.over == "samples" else {name: value.abs() for name, value in found.mean.items()}

"""Fisher information of the gates (Kwon et al., NeurIPS 2022)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from optin_fx.data import Batch
from optin_fx.gradients import gate_gradients
from optin_fx.objectives import Loss, found_loss, of_draws, of_labels, use_labels
from optin_fx.pipeline import ScorePass
from optin_fx.program import Program


@dataclass(frozen=True)
class ScoreFisher(ScorePass):
    """`I_u = 1/2 E_n[(dL_n / dz_u)^2]`, the diagonal of the (empirical) Fisher information at gates of one.

    To second order this is the rise of the loss when unit u alone is removed (Kwon et al. 2022, eq. 6-8). Gradients are per
    *sample*; their public code squares the mean gradient of a mini-batch, which depends on the batch size. Cost: one
    forward and `draws` backward passes over the data. With labels it is the empirical Fisher of the cross-entropy; without,
    labels are drawn from the model's own outputs, which gives the true Fisher, twice the KL divergence at second order.

    A head's gate is one number, so its gradient is the sum over the head's dims, cross terms included.

    Attributes:
        labels: "auto" uses the batches' labels if all have them; "given" demands them; "sampled" never uses them.
        draws: labels drawn per sample when they are sampled.
        seed: of the draws.
        loss: a loss of your own, `loss(outputs, labels) -> scalar summed over samples`, or its place `package.module:function`.
        keep_samples: keep the gradients g of every sample as `extra["gradients/<group>"]`, `[samples x draws, units]`
            float32. The block Fisher of a set P of units, which rearrangement reads, is `E_n (sum_{u in P} g_nu)^2`.
    """

    labels: str = "auto"
    draws: int = 4
    seed: int = 0
    loss: Loss | str | None = None
    keep_samples: bool = False

    def __post_init__(self) -> None:
        if self.labels not in ("auto", "given", "sampled") or self.draws < 1:
            raise ValueError("labels is one of auto, given, sampled; draws at least 1")

    def score(self, program: Program, batches: Sequence[Batch]) -> dict[str, torch.Tensor]:
        """Half the mean squared gate gradient."""
        labelled = use_labels(batches, self.labels, demanded=self.loss is not None, needed_for=self.name())
        objective = of_labels(program, found_loss(self.loss)) if labelled else of_draws(program, self.draws)
        found = gate_gradients(program, batches, objective, keep_samples=self.keep_samples, seed=self.seed)["loss"]
        result = {name: 0.5 * value for name, value in found.squared.items()}
        return result | {f"extra/gradients/{name}": value for name, value in found.samples.items()}

"""Which tokens of a batch are padding."""

from __future__ import annotations

import torch

from optin_fx.data import Batch
from optin_fx.program import Program


def token_mask(program: Program, batch: Batch) -> torch.Tensor | None:
    """The batch's attention mask, if the model takes one of shape [batch, tokens]: padding does not count."""
    for name, value in batch.kwargs.items():
        if "mask" in name and isinstance(value, torch.Tensor) and value.dim() == 2:
            return value != 0
    for name, value in zip(program.input_names, batch.args, strict=False):
        if "mask" in name and isinstance(value, torch.Tensor) and value.dim() == 2:
            return value != 0
    return None

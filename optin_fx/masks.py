"""Which tokens of a batch are padding."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from optin_fx.analysis import Analysis, analyse
from optin_fx.data import Batch
from optin_fx.dims import Axis
from optin_fx.program import Program


def token_mask(program: Program, batch: Batch) -> torch.Tensor | None:
    """The batch's attention mask, if the model takes one of shape [batch, tokens]: padding does not count. True: a token."""
    return next((value for _, value in _masks(program, batch)), None)


def token_weights(program: Program, batch: Batch, axes: Sequence[Axis], shape: Sequence[int]) -> torch.Tensor | None:
    """One for entries of tokens and zero for those of padding, broadcastable to a tensor with these axes; None if nothing is padding.

    The token dim is found by its axis, so it may be anywhere; the batch must be the leading dim.
    """
    analysis = analyse(program)
    for name, mask in _masks(program, batch):
        tokens = _token_axis(analysis, name)
        at = [d for d, axis in enumerate(axes) if d > 0 and tokens is not None and axis.root() is tokens]
        if not at and len(shape) > 2 and tuple(shape[:2]) == tuple(mask.shape):
            at = [1]
        if at and shape[0] == mask.shape[0] and shape[at[0]] == mask.shape[1]:
            view = [1] * len(shape)
            view[0], view[at[0]] = mask.shape
            return mask.reshape(view)
    return None


def _masks(program: Program, batch: Batch) -> list[tuple[str, torch.Tensor]]:
    named = [*batch.kwargs.items(), *zip(program.input_names, batch.args, strict=False)]
    return [(n, v != 0) for n, v in named if "mask" in n and isinstance(v, torch.Tensor) and v.dim() == 2]


def _token_axis(analysis: Analysis, name: str) -> Axis | None:
    axes = analysis.axes.get(name)
    return axes[1].root() if axes and len(axes) == 2 and isinstance(axes[1], Axis) else None

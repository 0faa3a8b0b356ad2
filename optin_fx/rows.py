"""Which rows of a contraction enter its moments."""

from __future__ import annotations

import torch


def chosen_rows(count: int, mask: torch.Tensor | None, read: torch.Tensor, limit: int, generator: torch.Generator) -> torch.Tensor:
    """Numbers of the rows to use: no padding, and at most `limit`, drawn without replacement.

    Args:
        count: rows of the output, all dims but the feature's flattened.
        mask: `[batch, tokens]`, true where there is no padding; it counts where `read` is `[batch, tokens, features]`.
    """
    if mask is not None and read.dim() == 3 and mask.shape == read.shape[:2] and mask.numel() == count:
        index = torch.nonzero(mask.flatten()).flatten()
    else:
        index = torch.arange(count)
    if len(index) > limit:
        # In order, so that the rows of a sample stay together: an only batch's last ones may be held out.
        index = index[torch.randperm(len(index), generator=generator)[:limit].sort().values]
    return index

"""Which p units of a group to remove so that a quadratic loss `sum_{i,j in P} A_ij` is small."""

from __future__ import annotations

import torch


def greedy(loss: torch.Tensor, count: int) -> torch.Tensor:
    """One pass over the units (Kwon et al. 2022): start from the `count` of least diagonal; offer each other unit in ascending order, and
    release the member whose removal leaves the least loss.

    Args:
        loss: symmetric, positive semidefinite, `[units, units]`.

    Returns:
        Mask of the removed units, `[units]` bool.
    """
    diagonal = loss.diagonal()
    order = torch.argsort(diagonal, stable=True).tolist()
    gone = torch.zeros(len(loss), dtype=torch.bool)
    gone[order[:count]] = True
    if count == 0:
        return gone
    pull = loss[:, gone].sum(1)  # sum over the removed set, for every unit
    for unit in order[count:]:
        pull = pull + loss[:, unit]
        gone[unit] = True
        # leaving v out takes 2 (A 1_P)_v - A_vv off the loss
        released = int(torch.where(gone, 2 * pull - diagonal, -torch.inf).argmax())
        gone[released] = False
        pull = pull - loss[:, released]
    return gone


def local_search(loss: torch.Tensor, gone: torch.Tensor, rounds: int) -> torch.Tensor:
    """Exchange the pair of a removed and a kept unit that lowers the loss most, until no exchange does.

    Args:
        loss: as for `greedy`. gone: mask to start from. rounds: at most so many exchanges.
    """
    gone = gone.clone()
    diagonal = loss.diagonal()
    pull = loss[:, gone].sum(1)
    for _ in range(rounds):
        out, rest = torch.nonzero(gone).flatten(), torch.nonzero(~gone).flatten()
        if not len(out) or not len(rest):
            break
        change = (diagonal[out] - 2 * pull[out])[:, None] + (diagonal[rest] + 2 * pull[rest])[None, :] - 2 * loss[out][:, rest]
        best = int(change.argmin())
        leave, enter = int(out[best // len(rest)]), int(rest[best % len(rest)])
        if float(change.flatten()[best]) >= -1e-12 * float(diagonal.abs().max()):
            break
        gone[leave], gone[enter] = False, True
        pull = pull + loss[:, enter] - loss[:, leave]
    return gone

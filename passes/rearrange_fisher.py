"""Rearrangement of a plan by the block-diagonal Fisher information (Kwon et al., NeurIPS 2022)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from optin_fx.errors import ScoreError
from optin_fx.moments import gram_matrix
from optin_fx.pipeline import Pass, State
from optin_fx.plan import make_plan
from optin_fx.swaps import greedy, local_search


@dataclass(frozen=True)
class RearrangeFisher(Pass):
    """Exchange kept and removed units within each group, so that what is removed loses least *together*.

    With the per-sample gate gradients g_n the loss of a set P is, to second order, `1/2 E_n[(sum_{u in P} g_nu)^2]`: two units whose
    gradients cancel may both go. Counts per group stay as they are, hence the cost does, too. Kwon et al. (2022, eq. 9-11) pass
    once over the units, adding each to the removed set and releasing the one that leaves the least loss; `search=swaps` goes on with
    the best single exchange until none helps. Needs gradients of single samples: `score-fisher{keep_samples=True}`. Cost: one Gram matrix
    per group and no pass of the model.

    Attributes:
        search: "greedy" (the paper) or "swaps" (greedy, then best exchanges).
        diagonal: share of the cross terms that is replaced by zero, from 0 (the paper) to 1 (nothing is left to rearrange). Their
            estimate has at most as many dimensions as there are samples.
        rounds: at most so many exchanges per group.
    """

    search: str = "swaps"
    diagonal: float = 0.0
    rounds: int = 2000

    reads: ClassVar[tuple[str, ...]] = ("program", "scores", "plan")
    writes: ClassVar[tuple[str, ...]] = ("plan",)

    def __post_init__(self) -> None:
        if self.search not in ("greedy", "swaps") or not 0 <= self.diagonal <= 1:
            raise ValueError("search is greedy or swaps, diagonal is from 0 to 1")

    def apply(self, state: State) -> State:
        """Rearrange the plan of a state."""
        assert state.plan is not None
        assert state.scores is not None
        kept, before, after = dict(state.plan.kept), 0.0, 0.0
        for name, units in state.plan.kept.items():
            gradients = state.scores.extra.get(f"gradients/{name}")
            if gradients is None:
                raise ScoreError(
                    f"there are no gradients of single samples for {name!r}",
                    at=state.scores.method,
                    so="its units cannot be rearranged",
                    fix="score with fisher{keep_samples=True}",
                )
            gone = torch.ones(state.plan.extents[name], dtype=torch.bool)
            gone[list(units)] = False
            fisher = _fisher(gradients, self.diagonal)
            before += float(0.5 * fisher[gone][:, gone].sum())
            gone = greedy(fisher, int(gone.sum()))
            if self.search == "swaps":
                gone = local_search(fisher, gone, self.rounds)
            after += float(0.5 * fisher[gone][:, gone].sum())
            kept[name] = tuple(torch.nonzero(~gone).flatten().tolist())
        facts = {**state.plan.provenance, "rearranged": {"by": str(self), "loss before": before, "loss after": after}}
        return replace(state, plan=make_plan(state.program, kept, predicted=dict(state.plan.predicted), provenance=facts))


def _fisher(gradients: torch.Tensor, diagonal: float) -> torch.Tensor:
    """`E_n[g_n g_n^T]`, `[extent, extent]` float64."""
    found = gram_matrix(gradients, gradients).double() / max(len(gradients), 1)
    shrunk = (1 - diagonal) * found
    shrunk.diagonal().copy_(found.diagonal())
    return shrunk

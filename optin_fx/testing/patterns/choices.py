"""Experts and the like: units that are chosen among, and positions that come as values."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from optin_fx.testing.patterns.pattern import Outcome, pattern, rows


class Routed(nn.Module):
    """Four experts of 7 x 9 x 6, of which a router chooses two for each row; `out`."""

    experts, best = 4, 2

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(7, self.experts)
        self.up = nn.Parameter(torch.randn(self.experts, 7, 9))
        self.down = nn.Parameter(torch.randn(self.experts, 9, 6))
        self.out = nn.Linear(6, 5)

    def mix(self, x: Tensor, weights: Tensor) -> Tensor:
        """All experts, by weights of which most are zero."""
        hidden = torch.einsum("bi,eih->beh", x, self.up).relu()
        return torch.einsum("beh,eho,be->bo", hidden, self.down, weights)

    def route(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.mix(x, self.route(x)))


FREE: dict[str, Outcome] = {"router.weight:0": (4,), "up:0": (4,), "down:0": (4,), "up:2": (9,)}
PINNED: dict[str, Outcome] = {"router.weight:0": "pinned", "up:0": "pinned", "up:2": (9,)}


@pattern(rows, FREE)
class ScatteredWeights(Routed):
    """Weights of the chosen are written back to where they were: an expert that is gone is never chosen."""

    def route(self, x: Tensor) -> Tensor:
        value, place = self.router(x).softmax(-1).topk(self.best, -1)
        return torch.zeros(x.shape[0], self.experts).scatter(1, place, value / value.sum(-1, keepdim=True))


@pattern(rows, FREE)
class OneHotWeights(Routed):
    """The same by a one-hot code of the places, and with the softmax after the choice."""

    def route(self, x: Tensor) -> Tensor:
        value, place = self.router(x).topk(self.best, -1)
        return (nn.functional.one_hot(place, self.experts) * value.softmax(-1).unsqueeze(-1)).sum(1)


@pattern(rows, FREE)
class GatheredSigmoids(Routed):
    """Sigmoids, chosen with a correction that does not weigh, and looked up without it."""

    def __init__(self) -> None:
        super().__init__()
        self.correction = nn.Parameter(torch.randn(self.experts))

    def route(self, x: Tensor) -> Tensor:
        scores = self.router(x).sigmoid()
        place = (scores + self.correction).topk(self.best, -1)[1]
        return torch.zeros_like(scores).scatter(1, place, scores.gather(1, place))


@pattern(rows, FREE)
class LookedUpExperts(Routed):
    """The chosen experts' matrices are looked up for every row."""

    def forward(self, x: Tensor) -> Tensor:
        value, place = self.router(x).softmax(-1).topk(self.best, -1)
        hidden = torch.einsum("bi,bkih->bkh", x, self.up[place]).relu()
        return self.out(torch.einsum("bkh,bkho,bk->bo", hidden, self.down[place], value))


@pattern(rows, FREE)
class SwitchedExperts(Routed):
    """One expert for each row, whose probability weighs it."""

    best = 1

    def route(self, x: Tensor) -> Tensor:
        probabilities = self.router(x).softmax(-1)
        place = probabilities.topk(1, -1).indices.squeeze(-1)
        return probabilities * nn.functional.one_hot(place, self.experts)


@pattern(rows, {"router.weight:0": (3, 4), "up:2": (9,)})
class ExpertsInGroups(Routed):
    """Twelve experts in three groups of four, and the best two of the better group: groups may go, and the same expert of every group."""

    experts = 12

    def route(self, x: Tensor) -> Tensor:
        logits = self.router(x)
        group = logits.view(-1, 3, 4).topk(2, -1)[0].sum(-1).topk(1, -1)[1]
        open_groups = torch.zeros(x.shape[0], 3).scatter(1, group, 1.0)
        held = logits.masked_fill(open_groups.unsqueeze(-1).expand(-1, -1, 4).reshape(-1, 12) == 0, -1e9)
        value, place = held.softmax(-1).topk(self.best, -1)
        return torch.zeros_like(logits).scatter(1, place, value)


@pattern(rows, PINNED)
class WeighedExperts(Routed):
    """No choice: a softmax weighs all of them, and each weight depends on the others."""

    def route(self, x: Tensor) -> Tensor:
        return self.router(x).softmax(-1)


@pattern(rows, PINNED)
class ComparedPlaces(Routed):
    """Places are compared with numbers that are written in the code: what is third must stay third."""

    def route(self, x: Tensor) -> Tensor:
        value, place = self.router(x).softmax(-1).topk(self.best, -1)
        return torch.stack([(value * (place == e)).sum(-1) for e in range(self.experts)], -1)


@pattern(rows, PINNED)
class CalculatedPlaces(Routed):
    """The expert next to the chosen one: a sum of a place and a number is no place."""

    def route(self, x: Tensor) -> Tensor:
        value, place = self.router(x).softmax(-1).topk(self.best, -1)
        return torch.zeros(x.shape[0], self.experts).scatter(1, (place + 1) % self.experts, value)


@pattern(rows, PINNED)
class ReturnedPlaces(Routed):
    """The caller is told which experts were chosen."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        value, place = self.router(x).softmax(-1).topk(self.best, -1)
        return self.out(self.mix(x, torch.zeros(x.shape[0], self.experts).scatter(1, place, value))), place


@pattern(rows, {"router.weight:0": "pinned", "up:0": "pinned"})
class PlacesInAnotherTable(Routed):
    """A place among four that is looked up in a table of six says nothing about the table."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.randn(6, 7, 9))

    def forward(self, x: Tensor) -> Tensor:
        place = self.router(x).topk(1, -1)[1].squeeze(-1)
        hidden = torch.einsum("bi,bih->bh", x, self.up[place]).relu()
        return self.out(torch.einsum("bh,bho->bo", hidden, self.down[place]))


@pattern(rows, {"router.weight:0": "pinned"})
class WorstPlaces(Routed):
    """The least of all: an expert that is gone would have to be infinitely good not to be chosen."""

    def route(self, x: Tensor) -> Tensor:
        value, place = self.router(x).topk(self.best, -1, largest=False)
        return torch.zeros(x.shape[0], self.experts).scatter(1, place, value)

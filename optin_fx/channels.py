"""Statistics of channels over batches, and BatchNorms that are moved along with them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import fx

from optin_fx.attributes import assign, attribute
from optin_fx.dims import Axis, positions
from optin_fx.lockstep import Lockstep
from optin_fx.plan import Cut


class ChannelMoments:
    """Mean and variance of every channel, from values `[rows, channels, ...]` that come one after the other, float64.

    Batches are joined by their means and squared deviations (Chan, Golub and LeVeque 1979), which does not cancel where means are large.
    """

    def __init__(self) -> None:
        self.count = 0
        self.mean = self.deviations = torch.zeros((), dtype=torch.float64)

    def add(self, value: torch.Tensor) -> None:
        """Add a batch."""
        flat = value.transpose(0, 1).flatten(1).double()
        mean, count = flat.mean(1), flat.shape[1]
        apart, total = mean - self.mean, self.count + count
        self.deviations = self.deviations + (flat - mean[:, None]).square().sum(1) + apart.square() * (self.count * count / total)
        self.mean = self.mean + apart * (count / total)
        self.count = total

    @property
    def variance(self) -> torch.Tensor:
        """`[channels]`."""
        return self.deviations / self.count


class Renormalising:
    """Moves the statistics of a sliced program's BatchNorm in eval mode by what its input's moved from the dense program's."""

    def __init__(self, both: Lockstep, cut: Cut, node: fx.Node, axis: Axis, read: fx.Node, was: fx.Node) -> None:
        self.both, self.node, self.read, self.was = both, node, read, was
        self.kept = positions(axis, cut.units)
        self.now, self.before = ChannelMoments(), ChannelMoments()

    @classmethod
    def of(cls, both: Lockstep, cut: Cut, node: fx.Node, partner: fx.Node) -> Renormalising | None:
        """For a BatchNorm in eval mode; None for any other node."""
        if node.target is not torch.ops.aten.batch_norm.default or node.args[5]:
            return None
        read, was = node.args[0], partner.args[0]
        if not isinstance(read, fx.Node) or not isinstance(was, fx.Node):
            return None
        return cls(both, cut, node, cut.analysis.axes[was.name][1], read, was)

    def see(self, number: int) -> None:
        """Take the values of a batch in."""
        self.now.add(self.both.sliced.value(self.read))
        self.before.add(self.both.dense.value(self.was))

    def finish(self) -> None:
        """Write the statistics."""
        old_mean, old_variance = (v if self.kept is None else v[self.kept] for v in (self.before.mean, self.before.variance))
        ratio = (self.now.variance / old_variance.clamp_min(1e-12)).clamp(0.1, 10)
        self._change(3, lambda mean: mean + self.now.mean - old_mean)
        self._change(4, lambda variance: variance * ratio)

    def _change(self, place: int, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
        at = self.node.args[place]
        if isinstance(at, fx.Node) and at.op == "get_attr":
            value = attribute(self.both.sliced.module, str(at.target))
            assign(self.both.sliced.module, str(at.target), change(value.double()).to(value))

"""How much a backward pass keeps of its forward pass, and how a batch is cut so that this fits.

The losses of this library look at a batch's outputs, and at some values on the way, which are small beside all that a backward pass through
the model needs. So a batch that is cut runs forward once as a whole, without a tape; the loss is computed there, and gives gradients at
those values; and then each part of the batch runs forward and backward from its share of these. Losses, the random numbers in them, and
gradients are those of the whole batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import fx
from torch.utils._pytree import tree_leaves

from optin_fx.available import bytes_to_use
from optin_fx.data import Batch, has_fixed_rows, rows, take
from optin_fx.freeing import give_back, without_holes
from optin_fx.groups import group
from optin_fx.interpreter import Runner, device_of
from optin_fx.program import Program


class FrozenRunner(Runner):
    """Weights have no gradients, so that what only those would need is not kept: a layer's input, above all."""

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        """A weight, detached."""
        value = super().get_attr(target, args, kwargs)
        return value.detach() if isinstance(value, torch.Tensor) else value

    def sources(self, outputs: Sequence[Any]) -> list[torch.Tensor]:
        """What a loss may read of a finished run: its floating outputs, then what was tapped."""
        floating = [value for value in outputs if isinstance(value, torch.Tensor) and value.is_floating_point()]
        return floating + list(self.tapped.values())


class Cutter:
    """Cuts batches so that their tapes fit in the memory limit; without one, in half of what is free: a cut costs another forward pass.

    Args:
        taps: nodes whose results the loss reads.
    """

    def __init__(self, program: Program, taps: tuple[str, ...]) -> None:
        self.program, self.taps = program, taps
        self.known: dict[tuple[torch.Size, ...], tuple[int, list[torch.Size]]] = {}

    def parts(self, batch: Batch) -> list[slice]:
        """Rows that go forward and backward together."""
        n = rows(batch)
        if n < 3 or has_fixed_rows(self.program):
            return [slice(0, n)]
        size, _ = self._of_two(batch)
        fits = max(1, 2 * bytes_to_use(device_of(self.program)) // max(size, 1))
        count = -(-n // fits)
        return [slice(n * i // count, n * (i + 1) // count) for i in range(count)]

    def cuts(self, sources: Sequence[torch.Tensor], batch: Batch) -> bool:
        """Whether the rows of a whole run's `sources` belong to samples in order, so that parts can take theirs."""
        _, shapes = self._of_two(batch)
        n = rows(batch)
        return all(part_of(value, slice(0, 2), n).shape == shape for value, shape in zip(sources, shapes, strict=True))

    def _of_two(self, batch: Batch) -> tuple[int, list[torch.Size]]:
        """Bytes that the forward pass of two samples keeps for a backward pass, and the shapes of its `sources`."""
        key = tuple(leaf.shape for leaf in tree_leaves((batch.args, dict(batch.kwargs))) if isinstance(leaf, torch.Tensor))
        if key not in self.known:
            runner = _Counting(self.program, gates=ones(self.program, 2), taps=self.taps)
            with torch.enable_grad():
                found = runner.sources(runner(take(batch, 0, 2)))
            self.known[key] = runner.bytes(), [value.shape for value in found]
        return self.known[key]


class Taped(NamedTuple):
    """A run with a tape.

    Attributes:
        runner, outputs: of the run.
        leaves: where gradients are wanted.
    """

    runner: FrozenRunner
    outputs: list[Any]
    leaves: list[torch.Tensor]


Losses = Callable[[FrozenRunner, list[Any]], Sequence[tuple[str, torch.Tensor]]]
"""From a run and its outputs to labelled scalars. They read floating outputs and what was tapped, and nothing else that takes gradients."""

_Start = tuple[str, list[torch.Tensor], list[torch.Tensor] | None]
"""Where a backward pass begins: a loss's label, values, and the gradients at them."""

_Pull = tuple[str, tuple[torch.Tensor | None, ...]]
"""A loss's label and its gradients at a whole run's sources."""


class PartGradients(NamedTuple):
    """A loss's gradients at the leaves of a part's run.

    Attributes:
        part: rows of the batch.
        label: the loss's.
        at: the gradients; zeros where it does not depend on a leaf.
    """

    part: slice
    label: str
    at: tuple[torch.Tensor, ...]


def gradients(cutter: Cutter, batch: Batch, taped: Callable[[Batch], Taped], losses: Losses) -> Iterator[PartGradients]:
    """Gradients of every loss of a batch at the leaves of its parts' runs, part by part; the module's text says how.

    Args:
        taped: runs a part of the batch, or all of it. Gradients are enabled.
        losses: called once, for the whole batch.
    """
    parts = cutter.parts(batch)
    with without_holes():
        pulls = _pulls(cutter, batch, losses) if len(parts) > 1 else None
        if pulls is None:
            yield from _of_whole(batch, taped, losses)
        else:
            for part in parts:
                give_back()
                yield from _of_part(batch, part, taped, pulls)
    give_back()  # tapes come and go with every batch, and are large beside the time that this takes


def _pulls(cutter: Cutter, batch: Batch, losses: Losses) -> list[_Pull] | None:
    """Every loss's gradients at the sources of a run without a tape; None where parts cannot take theirs."""
    runner = FrozenRunner(cutter.program, taps=cutter.taps)
    with torch.no_grad():
        outputs = runner(batch)
    if not cutter.cuts(runner.sources(outputs), batch):
        return None
    leaves = [value.detach().requires_grad_() for value in runner.sources(outputs)]
    fresh = iter(leaves)
    outputs = [next(fresh) if isinstance(value, torch.Tensor) and value.is_floating_point() else value for value in outputs]
    runner.tapped = dict(zip(runner.tapped, fresh, strict=True))
    with torch.enable_grad():
        pending = losses(runner, outputs)
    return list(_backward(leaves, [(label, [value], None) for label, value in pending]))


def _of_whole(batch: Batch, taped: Callable[[Batch], Taped], losses: Losses) -> Iterator[PartGradients]:
    with torch.enable_grad():
        run = taped(batch)
        starts: list[_Start] = [(label, [value], None) for label, value in losses(run.runner, run.outputs)]
    return _at_leaves(slice(0, rows(batch)), run.leaves, starts)


def _of_part(batch: Batch, part: slice, taped: Callable[[Batch], Taped], pulls: Sequence[_Pull]) -> Iterator[PartGradients]:
    with torch.enable_grad():
        run = taped(take(batch, part.start, part.stop))
    sources = run.runner.sources(run.outputs)
    starts: list[_Start] = []
    for label, pull in pulls:
        pairs = [(v, part_of(g, part, rows(batch))) for v, g in zip(sources, pull, strict=True) if g is not None and v.requires_grad]
        starts.append((label, [value for value, _ in pairs], [gradient for _, gradient in pairs]))
    return _at_leaves(part, run.leaves, starts)


def _at_leaves(part: slice, leaves: list[torch.Tensor], starts: Sequence[_Start]) -> Iterator[PartGradients]:
    for label, found in _backward(leaves, starts):
        yield PartGradients(
            part, label, tuple(torch.zeros_like(leaf) if at is None else at for leaf, at in zip(leaves, found, strict=True))
        )


def _backward(leaves: list[torch.Tensor], starts: Sequence[_Start]) -> Iterator[_Pull]:
    """One backward pass from each start; the tape goes with the last one."""
    for i, (label, values, at) in enumerate(starts):
        yield label, torch.autograd.grad(values, leaves, at, retain_graph=i + 1 < len(starts), allow_unused=True)


def part_of(value: torch.Tensor, part: slice, n: int) -> torch.Tensor:
    """The rows of one of the `sources` of a batch of n that belong to some of its samples."""
    if value.dim() == 0 or value.shape[0] % n:
        return value
    each = value.shape[0] // n  # windows of an image, say
    return value[part.start * each : part.stop * each]


def ones(program: Program, count: int) -> dict[str, torch.Tensor]:
    """Gates of one that take gradients, with a row for each sample."""
    return {g.name: torch.ones(count, g.extent, requires_grad=True, device=device_of(program)) for g in group(program).free}


class _Counting(FrozenRunner):
    """Remembers what a backward pass will read, but for weights."""

    def __init__(self, program: Program, **options: Any) -> None:
        super().__init__(program, **options)
        self.kept: dict[int, int] = {}  # bytes by place in memory, which autograd holds until the run is over
        self.weights = {tensor.untyped_storage().data_ptr() for tensor in program.tensors.values()}

    def run_node(self, n: fx.Node) -> Any:
        """With every tensor that autograd keeps noted; weights it does not get, for these hooks replace those of a store."""
        with torch.autograd.graph.saved_tensors_hooks(self._note, lambda kept: kept):
            return super().run_node(n)

    def bytes(self) -> int:
        """Of all that was noted."""
        return sum(self.kept.values())

    def _note(self, tensor: torch.Tensor) -> torch.Tensor | None:
        place = tensor.untyped_storage().data_ptr()
        if place in self.weights or (self.store is not None and place in self.store.present):
            return None  # nothing runs backward
        self.kept[place] = tensor.untyped_storage().nbytes()
        return tensor

"""Calibration data: what counts as a batch, and clear refusals of what does not fit the model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch.utils import _pytree as pytree

from optin_fx.errors import DataError
from optin_fx.program import Program

ROWS = 32
"""Samples of a batch, where it is ours to choose."""


@dataclass(frozen=True)
class Batch:
    """One batch of calibration data.

    Attributes:
        args, kwargs: inputs, as the model is called.
        labels: targets for criteria that use them; None otherwise.
    """

    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    labels: Any = None


def batches_of(program: Program, data: Iterable[Any] | torch.Tensor | None, *, needed_for: str) -> list[Batch]:
    """Turn the user's data into checked batches.

    Args:
        data: an iterable of batches; each a tensor (the only input), a tuple (positional inputs), a dict (inputs by
            name; a key "labels" that is no input of the model is taken as labels) or a `Batch`. A tensor in place of the iterable holds
            samples, and is cut into batches of 32, or of the size that the model was traced for, if it takes no other.
        needed_for: what wants the data, for the error.

    Raises:
        DataError: there is none, or one does not fit the model's inputs.
    """
    if data is None:
        raise DataError(
            f"{needed_for} needs calibration data",
            fix="pass data=batches (--data in the shell), an iterable of example inputs (tensor, tuple or dict)",
        )
    if isinstance(data, torch.Tensor):
        data = _batched(program, data)
    if isinstance(data, (Mapping, Batch)):
        raise DataError("data is one batch, not an iterable of batches", fix="pass data=[batch]")
    found = [_batch(program, item, i) for i, item in enumerate(data)]
    if not found:
        raise DataError(
            "the calibration data is empty",
            so=f"{needed_for} has nothing to look at",
            fix="pass at least one batch; an iterator can be read only once",
        )
    return found


def _batched(program: Program, samples: torch.Tensor) -> Iterable[torch.Tensor]:
    """Batches of samples; the last may be smaller, and is left out where the model does not take it."""
    first = program.placeholders[0].meta.get("val") if program.placeholders else None
    if not samples.dim() or not isinstance(first, torch.Tensor) or not first.dim():
        return [samples]
    size = first.shape[0]
    if not isinstance(size, int):
        return samples.split(ROWS)
    return [part for part in samples.split(size) if len(part) == size] or [samples]


def _batch(program: Program, item: Any, number: int) -> Batch:
    if isinstance(item, Batch):
        batch = item
    elif isinstance(item, torch.Tensor):
        batch = Batch((item,))
    elif isinstance(item, Mapping):
        names = set(program.kwargs) | set(program.input_names)
        labels = item.get("labels") if "labels" not in names else None
        batch = Batch((), {str(k): v for k, v in item.items() if k in names or k != "labels"}, labels)
    elif isinstance(item, (tuple, list)):
        batch = Batch(tuple(item))
    else:
        raise DataError(f"a batch is a {type(item).__name__}", at=f"batch {number}", fix="use a tensor, a tuple, a dict or optin_fx.Batch")
    if len(batch.args) == 0 and program.args and len(batch.kwargs) >= len(program.args):
        batch = _positional(program, batch)
    _check(program, batch, number)
    return batch


def _positional(program: Program, batch: Batch) -> Batch:
    """A dict of inputs for a model that was traced with positional ones, matched by placeholder name."""
    names = program.input_names[: len(program.args)]
    if not all(name in batch.kwargs for name in names):
        return batch
    rest = {k: v for k, v in batch.kwargs.items() if k not in names}
    return Batch(tuple(batch.kwargs[name] for name in names), rest, batch.labels)


def _check(program: Program, batch: Batch, number: int) -> None:
    at = f"batch {number}"
    extra, missing = set(batch.kwargs) - set(program.kwargs), set(program.kwargs) - set(batch.kwargs)
    if len(batch.args) != len(program.args) or extra or missing:
        raise DataError(
            "the batch has other inputs than the model was traced with",
            at=f"{at}: {len(batch.args)} positional, {', '.join(sorted(batch.kwargs)) or 'none'} by name; "
            f"the model: {len(program.args)} positional, {', '.join(sorted(program.kwargs)) or 'none'} by name",
            fix="give each batch just the inputs that ofx.trace was given",
        )
    kwargs = {name: batch.kwargs[name] for name in program.kwargs}
    given, given_spec = pytree.tree_flatten((batch.args, kwargs))
    wanted, wanted_spec = pytree.tree_flatten((program.args, dict(program.kwargs)))
    if given_spec != wanted_spec:
        raise DataError("the batch is structured otherwise than the example inputs", at=at, fix=f"give it the structure {wanted_spec}")
    fakes = [node.meta["val"] for node in program.placeholders]
    for i, (a, b) in enumerate(zip(given, wanted, strict=True)):
        name = program.input_names[i] if i < len(program.input_names) else f"input {i}"
        if isinstance(a, torch.Tensor) != isinstance(b, torch.Tensor):
            raise DataError(
                f"{name} is a {type(a).__name__}, the model takes a {type(b).__name__}", at=at, fix="give inputs of the traced types"
            )
        if not isinstance(a, torch.Tensor):
            continue
        if a.dtype != b.dtype:
            raise DataError(f"{name} has dtype {a.dtype}, the model takes {b.dtype}", at=at, fix=f"cast it: {name}.to({b.dtype})")
        shape = fakes[i].shape if i < len(fakes) and isinstance(fakes[i], torch.Tensor) else b.shape
        fixed = [(d, w) for d, w in enumerate(shape) if isinstance(w, int)]
        if a.dim() != b.dim() or any(a.shape[d] != w for d, w in fixed):
            want = "x".join(str(w) if isinstance(w, int) else "any" for w in shape)
            raise DataError(
                f"{name} has shape {'x'.join(map(str, a.shape))}, the model takes {want}",
                at=at,
                fix="reshape the batch, or trace with dynamic_shapes that allow it",
            )


def rows(batch: Batch) -> int:
    """Number of samples in a batch: the leading extent of its first tensor."""
    for leaf in pytree.tree_leaves((batch.args, dict(batch.kwargs))):
        if isinstance(leaf, torch.Tensor) and leaf.dim():
            return int(leaf.shape[0])
    return 1


def take(batch: Batch, start: int, stop: int) -> Batch:
    """Rows `start:stop` of a batch; tensors whose leading extent is not the batch's are kept whole."""
    n = rows(batch)

    def cut(leaf: Any) -> Any:
        return leaf[start:stop] if isinstance(leaf, torch.Tensor) and leaf.dim() and leaf.shape[0] == n else leaf

    args, kwargs, labels = pytree.tree_map(cut, (batch.args, dict(batch.kwargs), batch.labels))
    return Batch(args, kwargs, labels)


def has_fixed_rows(program: Program) -> bool:
    """Whether the program was traced for one batch size only."""
    fakes = [node.meta.get("val") for node in program.placeholders]
    return any(isinstance(fake, torch.Tensor) and fake.dim() and isinstance(fake.shape[0], int) for fake in fakes)


def parted(program: Program, batches: Sequence[Batch], first: int) -> tuple[list[Batch], list[Batch]]:
    """(the first batches, with at least so many samples if possible; the others); neither is empty. An only batch is cut by rows.

    Where even that cannot be done (one batch of a fixed size), the same batch stands in both.
    """
    if len(batches) > 1:
        cut, count = 1, rows(batches[0])
        while count < first and cut < len(batches) - 1:
            count += rows(batches[cut])
            cut += 1
        return list(batches[:cut]), list(batches[cut:])
    n = rows(batches[0])
    if n < 2 or has_fixed_rows(program):
        return list(batches), list(batches)
    cut = min(max(first, 1), n - 1)
    return [take(batches[0], 0, cut)], [take(batches[0], cut, n)]


def several(program: Program, batches: Sequence[Batch]) -> list[Batch]:
    """Batches of which some can be held out: an only one is cut by rows into 4 to 16, where the model takes any number of rows.

    Each has two rows at least: a graph that was exported for any number may take one row for a size to be broadcast.
    """
    n = rows(batches[0])
    if len(batches) != 1 or n < 4 or has_fixed_rows(program):
        return list(batches)
    count = min(n // 2, max(4, min(16, n // ROWS)))
    bounds = [n * i // count for i in range(count + 1)]
    return [take(batches[0], start, stop) for start, stop in pairwise(bounds)]


def first_batches(batches: Sequence[Batch], count: int) -> list[Batch]:
    """The first batches that hold at least so many samples together; all if they do not."""
    before = accumulate(map(rows, batches), initial=0)
    return [batch for batch, done in zip(batches, before, strict=False) if done < count]


def first_samples(batches: Sequence[Batch], count: int, *, needed_for: str) -> list[Batch]:
    """The first `count` samples of some batches; the last batch is cut.

    Raises:
        DataError: there are fewer.
    """
    found: list[Batch] = []
    left = count
    for batch in batches:
        if left <= 0:
            break
        found.append(batch if rows(batch) <= left else take(batch, 0, left))
        left -= rows(batch)
    if left > 0:
        raise DataError(
            f"the calibration data runs out after {count - left} samples",
            so=f"{needed_for} was asked for {count}",
            fix="pass more data, or ask for fewer samples",
        )
    return found

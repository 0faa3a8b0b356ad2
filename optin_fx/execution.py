"""How long loops run: on which device, in how much memory, with what progress shown, resumable or not, in how many processes.

None of it changes a result, so none of it is an option of a pass. Set it around any call:

    with execution(progress=True, partial="partial", memory_limit="4 GB"):
        scores = ofx.score(program, "trajectory", data=batches)

Loops over batches (or over candidates) go through `accumulate`, which shares them out among processes, keeps partial results and shows
the time left. A criterion of your own may use it, too.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch

from optin_fx import ranks
from optin_fx.errors import PipelineError
from optin_fx.freeing import LARGE, give_back
from optin_fx.partial import Partial, remove

T = TypeVar("T")
ROWS = "rows/"
"""Tensors of a step whose names begin so are rows of the result, in the order of the items; all others are added up."""


class Bar(Protocol):
    """Shows how far a loop is."""

    def advance(self, amount: float) -> None:
        """So much more of the work is done."""


@dataclass(frozen=True)
class Execution:
    """How long loops run; see `execution`."""

    device: torch.device | None = None
    memory_limit: int | None = None
    progress: bool = False
    partial: Path | None = None
    offload: bool = False
    name: str = ""
    key: str | None = None

    @property
    def folder(self) -> Path | None:
        """Where the running pass keeps its partial results."""
        return self.partial / self.key if self.partial is not None and self.key is not None else None


_CURRENT: ContextVar[Execution] = ContextVar("optin_fx_execution", default=Execution())  # noqa: B039  frozen


def current() -> Execution:
    """The settings that hold here."""
    return _CURRENT.get()


@contextmanager
def execution(
    *,
    device: str | torch.device | None = None,
    memory_limit: str | int | None = None,
    progress: bool | None = None,
    partial: str | Path | None = None,
    offload: bool | None = None,
) -> Iterator[Execution]:
    """Settings for everything that runs inside the block; those left out stay as they are outside.

    Args:
        device: where models run while they are scored, e.g. "cuda"; results come back to the CPU.
        memory_limit: bytes that activations of a pass may take, as a number or text ("4 GB", "512 MB"); weights come on top.
            Criteria that stack candidates stack fewer, and cut batches where one candidate is too large.
        progress: show a bar with the time left, on stderr, for every loop.
        partial: folder for partial results, each named by the hash of graph, weights, data and options. A loop that is interrupted or
            killed goes on from its last item when the same call is made again. Removed when the pass is done.
        offload: weights stay in the host's memory and go to the device one node at a time, for models larger than it; without another
            device, they are kept in a temporary file. See `optin_fx.offload` for models that are larger than the host's memory, too.

    Raises:
        PipelineError: the device does not exist here, or the memory limit cannot be read.
    """
    outer = current()
    made = replace(
        outer,
        device=outer.device if device is None else checked_device(device),
        memory_limit=outer.memory_limit if memory_limit is None else parse_bytes(memory_limit),
        progress=outer.progress if progress is None else progress,
        partial=outer.partial if partial is None else Path(partial),
        offload=outer.offload if offload is None else offload,
    )
    token = _CURRENT.set(made)
    try:
        yield made
    finally:
        _CURRENT.reset(token)


@contextmanager
def running(name: str, facts: Mapping[str, str]) -> Iterator[None]:
    """While a pass runs: processes must agree about `facts`, and partial results are keyed by them and removed at the end.

    Raises:
        DistributedError: the processes disagree.
    """
    ranks.refuse_disagreement(facts)
    token = _CURRENT.set(replace(current(), name=name, key="-".join([name, *facts.values()])))
    try:
        yield
        folder = current().folder
        if folder is not None:
            ranks.gathered(None)  # nobody reads any more
            remove(folder)
    finally:
        _CURRENT.reset(token)


def accumulate(
    label: str,
    items: Sequence[T],
    step: Callable[[int, T], Mapping[str, torch.Tensor]],
    *,
    weight: Callable[[T], float] = lambda item: 1.0,
) -> dict[str, torch.Tensor]:
    """The sum over items of the tensors that `step(number, item)` returns, in float64, on the CPU.

    Tensors called `rows/...` are concatenated in the order of the items instead, in their own precision. A step must depend on nothing but
    its number and item (draw random numbers from a generator seeded by the number): items are shared out among processes and skipped when
    a partial result holds them.

    Args:
        label: names the loop within the running pass.
        weight: how much work an item is beside the others, for the time left.
    """
    settings = current()
    own = range(ranks.rank(), len(items), ranks.count())
    share = f"{label}.{ranks.rank()}of{ranks.count()}" if ranks.count() > 1 else label
    partial = Partial(settings.folder, share) if settings.folder is not None else None
    done, sums = partial.load() if partial is not None else (set(), {})
    rows: dict[int, dict[str, torch.Tensor]] = {i: partial.load_rows(i) for i in done} if partial is not None else {}
    todo = [i for i in own if i not in done]
    with _bar(f"{settings.name} {label}".strip(), sum(weight(items[i]) for i in own), sum(weight(items[i]) for i in done)) as bar:
        for i in todo:
            found = step(i, items[i])
            rows[i] = {name.removeprefix(ROWS): value.detach().cpu() for name, value in found.items() if name.startswith(ROWS)}
            for name, value in found.items():
                if not name.startswith(ROWS):
                    value = value.detach().cpu()
                    # Adding in place casts on the way: a step's large matrices of float32 are never held in float64 beside their sum.
                    sums[name] = sums[name].add_(value) if name in sums else value.to(torch.float64, copy=True)
            large = sum(value.numel() * value.element_size() for value in found.values()) > LARGE
            del found
            if large:
                give_back()
            done.add(i)
            if partial is not None:
                if rows[i]:
                    partial.save_rows(i, rows[i])
                partial.save(done, sums)
            bar.advance(weight(items[i]))
    return _joined(sums, rows)


def _joined(sums: dict[str, torch.Tensor], rows: dict[int, dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Sums and rows of all processes together."""
    shapes: dict[str, torch.Size] = {}
    for theirs in ranks.gathered({name: value.shape for name, value in sums.items()}):
        shapes |= theirs  # a process without items has no sums yet
    whole = {name: sums.get(name, torch.zeros(shape, dtype=torch.float64)) for name, shape in shapes.items()}
    found = ranks.add_up(whole)
    everyone: dict[int, dict[str, torch.Tensor]] = {}
    for part in ranks.gathered(rows) if any(ranks.gathered(any(rows.values()))) else []:
        everyone |= part
    names = dict.fromkeys(name for item in everyone.values() for name in item)
    for name in names:
        found[ROWS + name] = torch.cat([everyone[i][name] for i in sorted(everyone) if name in everyone[i]])
    return found


def parse_bytes(value: str | int) -> int:
    """Bytes from a number or a text such as "4 GB" (powers of 1000) or "4 GiB" (powers of 1024).

    Raises:
        PipelineError: the text is something else, or not positive.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kMGT]?)(i?)B?\s*", str(value), re.IGNORECASE)
    if match is None:
        raise PipelineError(f"cannot read the memory limit {value!r}", fix="write bytes, or a number with a unit: 512 MB, 4 GB")
    number, unit, binary = match.groups()
    found = int(float(number) * (1024 if binary else 1000) ** " kmgt".index(unit.lower() or " "))
    if found <= 0:
        raise PipelineError(f"a memory limit of {value!r} leaves nothing", fix="give more than 0 bytes")
    return found


def checked_device(device: str | torch.device) -> torch.device:
    """A device that is there.

    Raises:
        PipelineError: it is not.
    """
    try:
        found = torch.device(device)
        torch.zeros(1, device=found)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise PipelineError(
            f"there is no device {device!r} here",
            at=str(error).strip().splitlines()[0][:200],
            fix="use cpu, or install torch for the device",
        ) from error
    return found


def _bar(text: str, total: float, done: float) -> AbstractContextManager[Bar]:
    if not current().progress or ranks.rank() != 0:
        return nullcontext(_Silent())
    return _rich_bar(text, total, done)


class _Silent:
    def advance(self, amount: float) -> None:
        """Show nothing."""


@contextmanager
def _rich_bar(text: str, total: float, done: float) -> Iterator[Bar]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns: Any = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        MofNCompleteColumn() if float(total).is_integer() else TextColumn(""),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(elapsed_when_finished=False),
    )
    with Progress(*columns, console=Console(stderr=True)) as shown:
        task = shown.add_task(text, total=total, completed=done)  # type: ignore[arg-type]  # rich's annotation; it takes floats

        class _Rich:
            def advance(self, amount: float) -> None:
                shown.advance(task, amount)

        yield _Rich()

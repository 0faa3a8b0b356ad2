"""The sizes that a latency is measured at: every batch size with every length."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

from optin_fx.errors import DataError
from optin_fx.lowering import Signature


def grid(
    signature: Signature, batches: Sequence[int] | None, lengths: Sequence[int] | Mapping[str, Sequence[int]] | None
) -> list[dict[str, int]]:
    """Symbol -> size, for each point; `[{}]` is the call as it is.

    Raises:
        DataError: the program does not take such a size, or it is not clear which dim a length belongs to.
    """
    axes: dict[str, Sequence[int]] = {}
    if batches:
        axes["batch"] = batches
    if lengths:
        axes |= _lengths(signature, lengths)
    for name, sizes in axes.items():
        for size in sizes:
            _fits(signature, name, size)
    return [dict(zip(axes, sizes, strict=True)) for sizes in itertools.product(*axes.values())]


def _lengths(signature: Signature, lengths: Sequence[int] | Mapping[str, Sequence[int]]) -> dict[str, Sequence[int]]:
    others = [name for name in signature.bounds if name != "batch"]
    if isinstance(lengths, Mapping):
        unknown = [name for name in lengths if name not in others]
        if unknown or len(lengths) != 1:
            raise DataError(
                f"lengths speaks of {', '.join(lengths) or 'nothing'}", fix=f"name one dynamic dim out of {', '.join(others) or 'none'}"
            )
        return dict(lengths)
    if len(others) != 1:
        raise DataError(
            f"the program has {len(others)} dynamic dims besides the batch",
            so="it is not clear which of them the lengths are sizes of",
            fix=f"pass lengths={{{others[0]!r}: (...)}}; there are {', '.join(others)}"
            if others
            else "trace it with a dynamic length, as in dynamic_shapes={'input_ids': {0: Dim('batch'), 1: Dim('length', max=512)}}",
        )
    return {others[0]: lengths}


def _fits(signature: Signature, name: str, size: int) -> None:
    fixed = name not in signature.bounds
    low, high = signature.bounds.get(name, (1, 1))
    if fixed or not low <= size <= (high or size) or size < 1:
        cure = "leading dim named batch, or leave batches out" if name == "batch" else "dim of that size, or leave lengths out"
        raise DataError(
            f"the program does not take a {name} of {size}",
            at=f"its {name} is fixed" if fixed else f"{name} from {low} to {high}",
            fix=f"trace it with a dynamic {cure}",
        )

"""The step after the rewrite: rows that nothing reads are not computed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from optin_fx.narrowing import narrow
from optin_fx.pipeline import Pass, State


@dataclass(frozen=True)
class NarrowRows(Pass):
    """Move selections up through the smaller program: where a classifier reads one token, the last layer needs no other rows, bar its keys'
    and values'.

    Exact, and free; see `optin_fx.narrowing`. A search with `narrowed` counts on it. It comes last, because refits are better made from all
    rows than from the few that are left. A program of which all rows are read stays as it is.
    """

    reads: ClassVar[tuple[str, ...]] = ("small",)
    writes: ClassVar[tuple[str, ...]] = ("small",)

    def apply(self, state: State) -> State:
        """Narrow the smaller program of a state."""
        assert state.small is not None
        return replace(state, small=narrow(state.small))

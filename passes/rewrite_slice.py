"""The plain rewrite: slice and trace again."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from optin_fx.pipeline import Pass, State
from optin_fx.rewriting import rewrite


@dataclass(frozen=True)
class RewriteSlice(Pass):
    """Physically remove what the plan does not keep. Weights that stay are unchanged."""

    reads: ClassVar[tuple[str, ...]] = ("program", "plan")
    writes: ClassVar[tuple[str, ...]] = ("small",)

    def apply(self, state: State) -> State:
        """Slice the program of a state by its plan."""
        assert state.plan is not None
        return replace(state, small=rewrite(state.program, state.plan))

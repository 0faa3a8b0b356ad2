"""What the analysis makes of one dim of a parameter, in the words of `patterns`."""

from __future__ import annotations

from optin_fx.groups import Groups
from optin_fx.program import Program


def outcome(program: Program, groups: Groups, place: str) -> tuple[str, tuple[int, ...]]:
    """`("free" | "part" | "pinned", extents of its free groups)` for a place such as `"fc1.weight:0"`."""
    name, _, dim = place.rpartition(":")
    if name not in program.tensors:
        raise KeyError(f"the graph has no tensor {name!r}; it has {', '.join(program.tensors)}")
    here = [group for group in groups if (name, int(dim)) in group.members]
    free = tuple(sorted(group.extent for group in here if group.pinned is None))
    return ("free" if len(free) == len(here) and free else "part" if free else "pinned"), free


def fits(found: tuple[str, tuple[int, ...]], expected: str | tuple[int, ...]) -> bool:
    """Whether an outcome is the expected one, given as a word or as extents of free groups."""
    return found[0] == expected if isinstance(expected, str) else found[1] == tuple(sorted(expected))

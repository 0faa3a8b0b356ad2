"""How a user steers a search: which groups stay whole, and between which widths the others may end."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatch

from optin_fx.errors import BudgetError
from optin_fx.groups import Group
from optin_fx.parts import in_part

Widths = tuple[tuple[str, int, int | None], ...]
"""(pattern, least, most) for groups that the pattern names; a most of None is the group's own extent."""

COUNTS = ("head", "kv-group", "query-head", "conv-group", "norm-group", "expert")
"""Kinds whose units are whole blocks: their number is no width, and `align` says nothing about it."""


def names(pattern: str, group: Group) -> bool:
    """True if a pattern (fnmatch) is about a group: it fits the group's name, or the module path that the name begins with."""
    return fnmatch(group.name, pattern) or in_part(group.name.rpartition(":")[0], pattern)


def touches(pattern: str, group: Group) -> bool:
    """True if a pattern names a group or a module, or parameter, that would change its shape with the group."""
    return names(pattern, group) or any(fnmatch(name, pattern) or in_part(name.rpartition(".")[0], pattern) for name, _ in group.members)


def as_widths(given: Mapping[str, Sequence[int | None]] | Iterable[Sequence[object]]) -> Widths:
    """`{"*.mlp.*": (64, 256)}`, or triples, as triples; the bounds may be None.

    Raises:
        ValueError: a pattern has no two bounds, or its least is above its most.
    """
    rows = [(pattern, *bounds) for pattern, bounds in given.items()] if isinstance(given, Mapping) else [tuple(row) for row in given]
    found: list[tuple[str, int, int | None]] = []
    for row in rows:
        pattern, least, most = row if len(row) == 3 else (None, None, None)
        if not isinstance(pattern, str) or not isinstance(least, int | None) or not isinstance(most, int | None):
            raise ValueError(f"widths: {row} is not (pattern, least, most)")
        if most is not None and not 1 <= (least or 1) <= most:
            raise ValueError(f"widths: the least of {pattern!r} is above its most, {least} > {most}")
        found.append((pattern, least or 1, most))
    return tuple(found)


def step_of(group: Group, align: int) -> int:
    """Multiples of what a group's width is chosen in: `align`, where at least two multiples fit into it."""
    return align if group.kind not in COUNTS and group.extent >= 2 * align else 1


def bounds_of(group: Group, widths: Widths, step: int) -> tuple[int, int]:
    """Least and most units of a group, as the narrowest of all patterns that name it says, in whole steps where some lie between."""
    least, most = group.least, group.extent
    for pattern, low, high in widths:
        if names(pattern, group):
            least, most = max(least, low), min(most, high or most)
    most = max(min(least, group.extent), most)
    if most < group.extent:
        most = max(most // step * step, min(least, most))
    return min(least, most), most


def refuse_strangers(groups: Iterable[Group], patterns: Iterable[str], meant: Callable[[str, Group], bool]) -> None:
    """Refuse a pattern that is about none of the groups, and so would do nothing.

    Raises:
        BudgetError: names the pattern.
    """
    known = list(groups)
    for pattern in patterns:
        if not any(meant(pattern, group) for group in known):
            raise BudgetError(
                f"the pattern {pattern!r} is about no group that may be pruned",
                so="it would do nothing",
                fix="print(ofx.group(program)) lists the names; a pattern is a group's or module's name, with * and ?; see also `kinds`",
            )

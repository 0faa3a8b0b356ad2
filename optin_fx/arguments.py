"""Arguments of a graph node's call by their schema name, wherever they are written."""

from __future__ import annotations

from typing import Any

from torch import fx


def read(node: fx.Node, args: list[Any], kwargs: dict[str, Any], name: str, index: int | None) -> Any:
    """A named argument out of a call's arguments."""
    at = argument_place(node, name)
    value = args[at] if at is not None and at < len(args) else kwargs[name]
    return value if index is None else value[index]


def write(node: fx.Node, args: list[Any], kwargs: dict[str, Any], name: str, index: int | None, value: Any) -> None:
    """Put a named argument back."""
    if index is not None:
        whole = list(read(node, args, kwargs, name, None))
        whole[index] = value
        value = whole
    at = argument_place(node, name)
    if at is not None and at < len(args):
        args[at] = value
    elif at is not None and at == len(args):
        args.append(value)
    else:
        kwargs[name] = value


def argument_place(node: fx.Node, name: str) -> int | None:
    """Position of a schema argument; None for a keyword-only one."""
    arguments = node.target._schema.arguments  # type: ignore[union-attr]
    at = next(i for i, a in enumerate(arguments) if a.name == name)
    return None if arguments[at].kwarg_only else at


def argument(node: fx.Node, name: str, index: int | None) -> Any:
    """A named argument of a node; with an index, that entry of it."""
    return read(node, list(node.args), dict(node.kwargs), name, index)


def set_argument(node: fx.Node, name: str, index: int | None, value: Any) -> None:
    """Give a node another argument; with an index, another entry of it."""
    args, kwargs = list(node.args), dict(node.kwargs)
    write(node, args, kwargs, name, index, value)
    node.args, node.kwargs = tuple(args), kwargs

"""Classes that a model's inputs and outputs are packed in: dataclasses and named tuples of the user's, made known to `torch.export`."""

from __future__ import annotations

import dataclasses
import importlib
import sys
from collections.abc import Iterable, Iterator
from functools import reduce
from typing import Any

import torch
from torch.utils import _pytree as pytree

from optin_fx.caches import register_caches
from optin_fx.errors import LoadError

_BUILT_IN = ("builtins", "torch", "collections")
"""Packages whose classes torch registers itself."""


def register_containers(value: Any) -> None:
    """Register the dataclasses and named tuples in a nest of values, once each, so that they can be taken apart and saved."""
    for leaf in pytree.tree_leaves(value, is_leaf=_is_unknown):
        if _is_unknown(leaf):
            _register(type(leaf))
            register_containers(leaf)


def class_names(*specs: pytree.TreeSpec | None) -> list[str]:
    """`module:class` of every class in some structures that has to be registered before they can be read from a file."""
    found: set[str] = set()
    pending = [spec for spec in specs if spec is not None]
    while pending:
        spec = pending.pop()
        kind = spec.context if spec.type is not None and pytree.is_namedtuple_class(spec.context) else spec.type
        if isinstance(kind, type) and kind.__module__.split(".")[0] not in _BUILT_IN:
            found.add(f"{kind.__module__}:{kind.__qualname__}")
        pending += spec.children()
    return sorted(found)


def register_by_name(names: Iterable[str]) -> None:
    """Import the classes of `class_names` and register them.

    Raises:
        LoadError: a class cannot be imported here.
    """
    kinds = []
    for name in names:
        module, _, path = name.partition(":")
        try:
            if module == "__main__" and path and not hasattr(sys.modules[module], path.split(".")[0]):
                raise ImportError("it was defined in a script")
            kinds.append(reduce(getattr, path.split("."), importlib.import_module(module)) if path else None)
        except (ImportError, AttributeError) as error:
            raise LoadError(
                f"the class of an input or output cannot be imported: {error}",
                at=name,
                so="the file's inputs and outputs cannot be put together",
                fix="make the module that defines it importable, with the class at its top level",
            ) from error
    register_caches()
    for kind in kinds:
        if isinstance(kind, type) and not _known(kind) and (dataclasses.is_dataclass(kind) or pytree.is_namedtuple_class(kind)):
            _register(kind)


def in_lists(spec: pytree.TreeSpec, leaves: Iterator[Any]) -> Any:
    """A structure with lists in place of the user's classes and of caches: how `torch.export` wants its `dynamic_shapes`."""
    if spec.is_leaf():
        return next(leaves)
    children = [in_lists(child, leaves) for child in spec.children()]
    if spec.type in pytree.BUILTIN_TYPES:
        return pytree.SUPPORTED_NODES[spec.type].unflatten_fn(children, spec.context)
    return children


def _is_unknown(value: Any) -> bool:
    kind = type(value)
    if pytree.is_namedtuple_instance(value) and not kind.__module__.startswith("torch"):
        return not _known(kind)
    return dataclasses.is_dataclass(value) and not isinstance(value, type) and not _known(kind)


def _known(kind: type) -> bool:
    return kind in pytree.SUPPORTED_SERIALIZED_TYPES or (kind in pytree.SUPPORTED_NODES and not pytree.is_namedtuple_class(kind))


def _register(kind: type) -> None:
    name = f"{kind.__module__}.{kind.__qualname__}"
    if pytree.is_namedtuple_class(kind):
        pytree._register_namedtuple(kind, serialized_type_name=name)
    else:
        torch.export.register_dataclass(kind, serialized_type_name=name)

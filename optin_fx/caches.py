"""Key-value caches of transformers: pytrees, so that decoders export as they ship (`use_cache=True`), and state, not results.

What a decoder returns beside its logits is read by nobody but its own next call, so a cache that has fewer keys and values is as
good as a wide one: the axes of a *returned* cache are not pinned. A cache that is passed *in* has the width that the caller made, and is.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

from torch.utils import _pytree as pytree


def register_caches() -> None:
    """Make every cache class of an imported transformers a pytree; call before export, and before reading a file.

    A decoder returns its cache beside its logits, and `torch.export` refuses outputs that it cannot take apart.
    transformers registers its caches only inside its own exporters, so the same is done here. Does nothing where
    transformers is not imported, and nothing twice.
    """
    if "transformers.cache_utils" not in sys.modules:
        return
    from transformers.cache_utils import Cache
    from transformers.exporters.exporter_dynamo import register_pytree_node

    pending = [Cache]
    while pending:
        kind = pending.pop()
        register_pytree_node(kind)
        pending += kind.__subclasses__()


def is_cache(kind: type | None) -> bool:
    """True for a class of caches, by what transformers derives them from."""
    return any(base.__name__ == "Cache" and base.__module__ == "transformers.cache_utils" for base in getattr(kind, "__mro__", ()))


def cache_leaves(spec: pytree.TreeSpec | None) -> frozenset[int]:
    """Places of the leaves of a structure that lie inside a cache."""
    return frozenset(place for place, inside in enumerate(_inside(spec, False)) if inside) if spec is not None else frozenset()


def _inside(spec: pytree.TreeSpec, inside: bool) -> Iterator[bool]:
    if spec.is_leaf():
        yield inside
        return
    inside = inside or is_cache(spec.type)
    for child in spec.children():
        yield from _inside(child, inside)

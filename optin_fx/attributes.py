"""Tensors of a module tree: by dotted name, and which of them are one and the same memory."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn


def attribute(module: nn.Module, name: str) -> Any:
    """`module.a.b.c` for the dotted name `a.b.c`."""
    value: Any = module
    for part in name.split("."):
        value = getattr(value, part)
    return value


def storage_key(tensor: torch.Tensor) -> tuple[object, ...]:
    """Equal for two tensors that are the same view of the same memory, that is, tied."""
    return (tensor.untyped_storage()._cdata, tensor.storage_offset(), tuple(tensor.shape), tensor.stride(), tensor.dtype)


def unique_storages(tensors: Iterable[torch.Tensor]) -> list[torch.Tensor]:
    """The tensors with ties counted once, in order."""
    return list({storage_key(tensor): tensor for tensor in tensors}.values())


def assign(module: nn.Module, name: str, tensor: torch.Tensor, *, persistent: bool = True) -> None:
    """Put a tensor at a dotted name: a parameter where it is one, else a buffer. Missing containers are made."""
    *path, leaf = name.split(".")
    for part in path:
        if not hasattr(module, part):
            module.add_module(part, nn.Module())
        module = getattr(module, part)
    if leaf in module._parameters:
        del module._parameters[leaf]
    elif leaf in module._buffers:
        persistent = leaf not in module._non_persistent_buffers_set
        del module._buffers[leaf]
    elif hasattr(module, leaf):
        delattr(module, leaf)
    if isinstance(tensor, nn.Parameter):
        module.register_parameter(leaf, tensor)
    else:
        module.register_buffer(leaf, tensor, persistent=persistent)

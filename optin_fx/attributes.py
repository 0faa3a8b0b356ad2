"""Tensors of a module tree: by dotted name, and which of them are one and the same memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
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
    """Equal for two tensors that are tied: the same entries of the same memory, their dims in whichever order (a weight, its transpose)."""
    return (tensor.untyped_storage()._cdata, tensor.storage_offset(), *_laid_out(tensor), tensor.dtype)


def in_memory_order(value: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
    """`value`, a tensor with the dims of `tensor`, seen as the memory of `tensor` lies: equal for all tensors of one `storage_key`."""
    order = memory_order(tensor)
    ones = [d for d in range(tensor.dim()) if d not in order]
    return value.permute([*order, *ones]).squeeze(tuple(range(len(order), tensor.dim())))


def from_memory_order(value: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
    """The inverse of `in_memory_order`: a view of `value` with the dims of `tensor`."""
    order = memory_order(tensor)
    value = value.permute(sorted(range(len(order)), key=order.__getitem__))
    for d, size in enumerate(tensor.shape):
        if size == 1:
            value = value.unsqueeze(d)
    return value


def memory_order(tensor: torch.Tensor) -> list[int]:
    """The dims longer than one, from the widest stride to the narrowest; those of tied tensors correspond in this order."""
    return sorted((d for d, size in enumerate(tensor.shape) if size != 1), key=lambda d: (tensor.stride(d), tensor.shape[d]), reverse=True)


def _laid_out(tensor: torch.Tensor) -> list[tuple[int, int]]:
    return [(tensor.stride(d), tensor.shape[d]) for d in memory_order(tensor)]


def overlapping(tensors: Iterable[torch.Tensor]) -> list[list[torch.Tensor]]:
    """Clusters of different tensors whose memory overlaps, each tensor object once."""
    by_storage: dict[object, dict[int, torch.Tensor]] = {}
    for tensor in tensors:
        if tensor.numel():
            by_storage.setdefault((tensor.untyped_storage()._cdata, tensor.dtype), {})[id(tensor)] = tensor
    clusters = []
    for found in by_storage.values():
        end = -1
        for tensor in sorted(found.values(), key=torch.Tensor.storage_offset):
            if tensor.storage_offset() >= end:
                clusters.append([tensor])
            else:
                clusters[-1].append(tensor)
            end = max(end, int(tensor.storage_offset()) + _span(tensor))
    return [cluster for cluster in clusters if len(cluster) > 1]


def _span(tensor: torch.Tensor) -> int:
    return 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))


def share_memory_as(original: nn.Module, copied: nn.Module) -> nn.Module:
    """Tie the tensors of a copy that overlap in the original; `deepcopy` gives each tensor object memory of its own."""
    own = {id(theirs): ours for theirs, ours in zip(_tensors(original), _tensors(copied), strict=True)}
    for cluster in overlapping(_tensors(original)):
        start = min(t.storage_offset() for t in cluster)
        length = max(t.storage_offset() + _span(t) for t in cluster) - start
        memory = cluster[0].detach().as_strided((length,), (1,), start).clone()
        for theirs in cluster:
            own[id(theirs)].data = memory.as_strided(theirs.shape, theirs.stride(), theirs.storage_offset() - start)
    return copied


def _tensors(module: nn.Module) -> Iterator[torch.Tensor]:
    for inner in module.modules():
        for tensor in (*inner._parameters.values(), *inner._buffers.values()):
            if tensor is not None:
                yield tensor


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

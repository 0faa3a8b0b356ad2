"""Models larger than the memory or the device: weights stay elsewhere, and each is fetched when a node reads it and dropped after.

A program whose large weights are away has tensors without storage (`meta`) in their place and a `Store` that brings them. Runs, with
and without gradients, go through `optin_fx.interpreter.Runner`, which asks the store. What a backward pass needs of a weight is
fetched once more. Activations stay in memory; a batch that is too large for them is cut by whoever makes it.
"""

from __future__ import annotations

import copy
import ctypes
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import fx, nn

from optin_fx.attributes import assign, storage_key
from optin_fx.errors import LoadError
from optin_fx.program import Program

SMALL = 1 << 16
"""Bytes; smaller tensors stay where they are."""


class Source(Protocol):
    """Where weights are."""

    def has(self, name: str) -> bool:
        """Whether it is here."""

    def read(self, name: str) -> torch.Tensor:
        """A weight by its name, in memory that is given back when the tensor is dropped."""


class InMemory:
    """Weights in the host's memory, for a device with less."""

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        self.tensors = dict(tensors)

    def has(self, name: str) -> bool:
        return name in self.tensors

    def read(self, name: str) -> torch.Tensor:
        return self.tensors[name].detach()


class OnDisk:
    """Weights in a safetensors file.

    Raises:
        LoadError: there is no such file, or a weight is missing in it.
    """

    def __init__(self, path: str | Path) -> None:
        from safetensors import SafetensorError, safe_open

        self.path = Path(path)
        _give_memory_back()
        try:
            with safe_open(str(path), framework="pt") as file:
                self.names = set(file.keys())
        except (OSError, SafetensorError) as error:
            raise LoadError(f"not a file of weights: {error}", at=str(path), fix="write it with safetensors.torch.save_file") from error

    def has(self, name: str) -> bool:
        return name in self.names

    def read(self, name: str) -> torch.Tensor:
        from safetensors import safe_open

        if name not in self.names:
            raise LoadError(f"the file has no weight {name!r}", at=str(self.path), fix="save the state dict of the traced model")
        with safe_open(str(self.path), framework="pt") as file:  # opened each time: its pages are given back with it
            return file.get_tensor(name).clone()


def _give_memory_back() -> None:
    """Have blocks of 1 MB and more returned to the system when they are freed.

    glibc raises that size to that of the largest block freed so far, up to 32 MB, and then keeps what was freed: reading 288 MB of weights
    one by one took 600 MB, and takes 60 MB with this.
    """
    try:
        ctypes.CDLL(None).mallopt(-3, 1 << 20)  # M_MMAP_THRESHOLD
    except (OSError, AttributeError):
        return  # another C library


class Store:
    """Brings weights to a device, and knows them again when autograd wants to keep them."""

    def __init__(self, source: Source, device: torch.device, stands_for: Mapping[int, str]) -> None:
        self.source, self.device, self.stands_for = source, device, dict(stands_for)
        self.present: dict[int, str] = {}

    def fetched(self, value: Any) -> Any:
        """The weight that a placeholder stands for; anything else as it is."""
        if not isinstance(value, torch.Tensor) or value.device.type != "meta":
            return value
        name = self.stands_for[value.untyped_storage()._cdata]
        weight = self.source.read(name).to(self.device)
        self.present = {weight.untyped_storage().data_ptr(): name}
        self.last = weight  # its address stays taken while autograd looks at it
        return weight

    @contextmanager
    def saving(self) -> Iterator[None]:
        """While a graph is recorded: weights are not kept for the backward pass, but fetched again in it."""

        def pack(tensor: torch.Tensor) -> Any:
            name = self.present.get(tensor.untyped_storage().data_ptr()) if tensor.numel() else None
            return tensor if name is None else (name, tensor.shape, tensor.stride(), tensor.storage_offset())

        def unpack(kept: Any) -> torch.Tensor:
            if isinstance(kept, torch.Tensor):
                return kept
            name, shape, stride, offset = kept
            return self.source.read(name).to(self.device).as_strided(shape, stride, offset)

        with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
            yield


def store_of(program: Program) -> Store | None:
    """The store of a program whose weights are away; None for any other."""
    found: Store | None = program.__dict__.get("_store")
    return found


def read_weight(program: Program, name: str) -> torch.Tensor:
    """A tensor of a program by its name, fetched if it is away."""
    store, tensor = store_of(program), program.tensors[name]
    found: torch.Tensor = tensor if store is None else store.fetched(tensor)
    return found


def transplanted(program: Program, tensors: Mapping[str, torch.Tensor], device: torch.device) -> Program:
    """A program of the same graph with other tensors, of the same names, shapes and ties, on a device. The given one is not changed."""
    root = nn.Module()
    for name, tensor in tensors.items():
        assign(root, name, tensor)
    graph = copy.deepcopy(program.graph_module.graph)
    for node in graph.nodes:
        if node.kwargs.get("device") is not None:
            node.kwargs = {**node.kwargs, "device": device}
    made = Program(program.exported, program.args, program.kwargs, provenance=program.provenance)
    made.__dict__["graph_module"] = fx.GraphModule(root, graph)
    return made


def each_once(tensors: Mapping[str, torch.Tensor], make: Callable[[str, torch.Tensor], torch.Tensor]) -> dict[str, torch.Tensor]:
    """`make(name, tensor)` for every tensor; ties stay ties, parameters stay parameters."""
    seen: dict[object, torch.Tensor] = {}
    found = {}
    for name, tensor in tensors.items():
        key = storage_key(tensor)
        if key not in seen:
            fresh = make(name, tensor.detach())
            seen[key] = nn.Parameter(fresh, requires_grad=False) if isinstance(tensor, nn.Parameter) else fresh
        found[name] = seen[key]
    return found


def away(program: Program, source: Source, device: torch.device | str = "cpu") -> Program:
    """A program of the same graph whose large weights are read from a source when they are needed, onto a device.

    Small tensors are read now, where the source has them. The given program is not changed; once it is dropped, so is the memory of its
    weights. It may be a skeleton whose weights were never filled in.
    """
    device = torch.device(device)
    stands_for: dict[int, str] = {}

    def make(name: str, tensor: torch.Tensor) -> torch.Tensor:
        if tensor.numel() * tensor.element_size() <= SMALL:
            return (source.read(name) if source.has(name) else tensor).to(device)
        empty = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")
        stands_for[empty.untyped_storage()._cdata] = name
        return empty

    made = transplanted(program, each_once(program.tensors, make), device)
    made.__dict__["_store"] = Store(source, device, stands_for)
    return made


def on_disk(program: Program, path: str | Path) -> Program:
    """The program with its large weights written to a safetensors file and read from there."""
    from safetensors.torch import save_file

    large = {n: t for n, t in program.tensors.items() if t.numel() * t.element_size() > SMALL}
    unique = {storage_key(t): n for n, t in reversed(large.items())}
    save_file({n: large[n].detach().contiguous() for n in unique.values()}, path)
    return away(program, OnDisk(path))

"""Targets by name, and the two verbs: `lower` a program to an engine, `load_engine` from a file."""

from __future__ import annotations

import importlib
import inspect
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from optin_fx.errors import LoweringError
from optin_fx.lowering.closeness import TOLERANCE, Closeness
from optin_fx.lowering.engine import Engine, read_sidecar
from optin_fx.lowering.signature import Signature
from optin_fx.program import Program

PRECISIONS = ("fp32", "tf32", "fp16", "bf16")
DEVICES = ("cpu", "cuda")


@dataclass(frozen=True)
class Target:
    """A parsed target text.

    Attributes:
        name: the backend's name, such as `onnxruntime`.
        precision: arithmetic of matrix products, `fp32` unless asked otherwise.
        device: `cpu` or `cuda`.
    """

    name: str
    precision: str
    device: str

    def __str__(self) -> str:
        return self.text

    @property
    def text(self) -> str:
        """Canonical text: the device is always shown, the precision where it is not fp32."""
        return ":".join([self.name, self.device] + ([] if self.precision == "fp32" else [self.precision]))


@dataclass(frozen=True)
class Backend:
    """One way to make engines.

    Attributes:
        name: the target name before the first colon.
        build: `(program, target, signature, **options) -> Engine`.
        load: `(path, sidecar, target, signature, **options) -> Engine`.
        precisions, devices: what it takes; the first device is the default.
        packages: imported when an engine runs; their memory is not the engine's.
        what: one line for listings.
    """

    name: str
    build: Callable[..., Engine]
    load: Callable[..., Engine]
    precisions: tuple[str, ...] = ("fp32",)
    devices: tuple[str, ...] = ("cpu",)
    packages: tuple[str, ...] = ()
    what: str = field(default="", compare=False)


_BACKENDS: dict[str, Backend] = {}


def register(backend: Backend) -> Backend:
    """Add a backend.

    Raises:
        LoweringError: the name is taken.
    """
    if backend.name in _BACKENDS:
        raise LoweringError(f"a target named {backend.name!r} is registered already", fix="choose another name")
    _BACKENDS[backend.name] = backend
    return backend


def targets() -> Mapping[str, Backend]:
    """All backends by name."""
    return dict(_BACKENDS)


def parse_target(text: str) -> Target:
    """`name[:precision|device]` -> `Target`, for instance `tensorrt:fp16`, `onnxruntime:cuda`, `eager:cpu:bf16`.

    Raises:
        LoweringError: unknown name, or a precision or device that the target does not take.
    """
    name, *qualifiers = text.split(":")
    backend = _BACKENDS.get(name)
    if backend is None:
        raise LoweringError(
            f"unknown target {text!r}",
            so="there is no engine to build",
            fix=f"use one of {', '.join(sorted(_BACKENDS))}, with :precision or :device where needed, as in onnxruntime:cpu",
        )
    precision, device = "fp32", backend.devices[0]
    for qualifier in qualifiers:
        if qualifier in backend.precisions:
            precision = qualifier
        elif qualifier in backend.devices:
            device = qualifier
        else:
            raise LoweringError(
                f"target {name} does not take {qualifier!r}",
                at=text,
                fix=f"precisions: {', '.join(backend.precisions)}; devices: {', '.join(backend.devices)}",
            )
    return Target(name, precision, device)


def lower(
    program: Program,
    target: str = "onnxruntime:cpu",
    *,
    dim_names: Mapping[str, Mapping[int, str]] | None = None,
    check: bool = True,
    tolerance: float | None = None,
    **options: Any,
) -> Engine:
    """Build an engine.

    Args:
        program: the program to lower; it is not changed.
        target: `name[:precision|device]`; `optin_fx.lowering.targets()` lists the names.
        dim_names: names of dynamic dims, input name -> dim -> name; see `Signature.of`.
        check: run the engine on the example inputs and compare with the program.
        tolerance: largest relative difference allowed by `check`; by default `closeness.TOLERANCE` of the precision.
        options: the backend's own, see its module.

    Raises:
        LoweringError: the target refuses the program, or the engine disagrees with it.
        MissingExtra: the target's package is not installed.
    """
    parsed = parse_target(target)
    backend = _BACKENDS[parsed.name]
    started = time.perf_counter()
    _known_options(backend.build, parsed.name, options)
    if torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda"):
        raise LoweringError(
            "torch.autocast is on around lower",
            so="it would be ignored in silence: an exported program carries its dtypes",
            fix=f"leave autocast, and lower to {parsed.name}:fp16 or {parsed.name}:bf16",
        )
    engine = backend.build(program, parsed, Signature.of(program, dim_names), **options)
    engine.facts.setdefault("program", program.fingerprint)
    engine.facts["build_s"] = round(time.perf_counter() - started, 3)
    if check and engine.cannot_run is None:
        from optin_fx.lowering.check import advice, agreement

        engine.closeness = agreement(engine, program)
        limit = TOLERANCE[parsed.precision] if tolerance is None else tolerance
        if not engine.closeness.within(limit):
            raise LoweringError(
                f"the {parsed} engine disagrees with its program: {engine.closeness}",
                at=f"tolerance {limit:g} relative",
                so="the engine is not returned",
                fix=advice(program, "pass tolerance= or check=False if that is good enough, or choose a higher precision"),
            )
    return engine


def load_engine(path: str | Path, **options: Any) -> Engine:
    """Read an engine that `Engine.save` wrote.

    Args:
        path: the artifact; its `.json` sidecar lies beside it.
        options: the backend's own run-time options, such as `threads=`.

    Raises:
        LoweringError: missing, corrupt, of another version or device.
        MissingExtra: the target's package is not installed.
    """
    path = Path(path)
    sidecar = read_sidecar(path)
    target = parse_target(sidecar["target"])
    _known_options(_BACKENDS[target.name].load, target.name, options)
    engine = _BACKENDS[target.name].load(path, sidecar, target, Signature.from_dict(sidecar["signature"]), **options)
    if sidecar["closeness"]:
        engine.closeness = Closeness(**sidecar["closeness"])
    return engine


def import_packages(path: Path) -> None:
    """Import what running the engine at `path` will import."""
    for package in _BACKENDS[parse_target(read_sidecar(path)["target"]).name].packages:
        importlib.import_module(package)


def _known_options(function: Callable[..., Engine], name: str, options: Mapping[str, Any]) -> None:
    known = [key for key, parameter in inspect.signature(function).parameters.items() if parameter.kind is parameter.KEYWORD_ONLY]
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise LoweringError(
            f"target {name} does not take the option {unknown[0]!r}",
            fix=f"use {', '.join(known)}" if known else "leave it out: it takes no options here",
        )

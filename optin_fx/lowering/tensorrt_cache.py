"""Caches that make the second build, or the second start, of a TensorRT engine quick.

Full TensorRT measures kernels when it builds and keeps the results in a timing cache. TensorRT-RTX measures nothing then (its timing
cache is a deprecated no-op) and compiles kernels when an engine first runs: those go to a runtime cache, which `save` writes beside the
engine.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from optin_fx.errors import LoweringError


def use_timing_cache(trt: Any, config: Any, path: Path | None) -> None:
    """Let the builder read a timing cache, where there is one.

    Raises:
        LoweringError: the module is TensorRT-RTX, or the file is no cache of this version.
    """
    if path is None:
        return
    if trt.__name__ == "tensorrt_rtx":
        raise LoweringError(
            "TensorRT-RTX takes no timing cache: it measures nothing when it builds",
            fix="leave timing_cache out; engine.save keeps what it compiles when it runs",
        )
    cache = config.create_timing_cache(path.read_bytes() if path.is_file() else b"")
    if not config.set_timing_cache(cache, ignore_mismatch=False):
        raise LoweringError(
            "the timing cache is of another GPU or version", at=str(path), fix="give the path of a file that does not exist yet"
        )


def keep_timing_cache(config: Any, path: Path | None) -> None:
    """Write what the builder has measured."""
    if path is not None:
        path.write_bytes(bytes(config.get_timing_cache().serialize()))


def with_runtime_cache(engine: Any, content: bytes | None) -> tuple[Any, Any]:
    """An execution context and its runtime cache, filled from an earlier run; no cache where the module has none."""
    config = engine.create_runtime_config() if hasattr(engine, "create_runtime_config") else None
    if config is None or not hasattr(config, "create_runtime_cache"):
        return engine.create_execution_context(), None
    cache = config.create_runtime_cache()
    if content:
        cache.deserialize(content)
    config.set_runtime_cache(cache)
    return engine.create_execution_context(config), cache

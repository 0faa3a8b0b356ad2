"""Peak memory of one engine, in a process of its own: `python -m optin_fx.lowering.memory ENGINE INPUTS THREADS`."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from optin_fx.errors import LoweringError
from optin_fx.lowering.engine import Engine

STATUS = Path("/proc/self/status")
RESET = Path("/proc/self/clear_refs")


def peak_memory(engine: Engine, args: Sequence[Any], kwargs: Mapping[str, Any], threads: int) -> int | None:
    """Bytes that loading the engine and running it three times add to a fresh process at the peak; `None` off Linux.

    Weights count, Python and the libraries do not. On a GPU it is the device's memory that is taken after the runs: allocators there keep
    what they once took.
    """
    if not STATUS.is_file():
        return None
    with tempfile.TemporaryDirectory() as folder:
        path = engine.save(Path(folder) / f"engine{engine.suffix}")
        inputs = Path(folder) / "inputs.pt"
        torch.save([tensor.cpu() for tensor in engine.signature.flatten(args, kwargs)], inputs)
        done = subprocess.run(
            [sys.executable, "-m", "optin_fx.lowering.memory", str(path), str(inputs), str(threads)],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "OMP_NUM_THREADS": str(threads)},
        )
    if done.returncode:
        raise LoweringError(
            f"the engine cannot be run in a process of its own: {(done.stderr.strip().splitlines() or ['no reason given'])[-1][:300]}",
            so="its peak memory is unknown",
            fix="measure without memory=True",
        )
    return int(done.stdout.split()[-1])


def _now(field: str) -> int:
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def main(path: str, inputs: str, threads: str) -> int:
    """Load, run, and return the bytes added at the peak."""
    from optin_fx.lowering.registry import import_packages, load_engine

    torch.set_num_threads(int(threads))
    tensors = torch.load(inputs, weights_only=True)
    import_packages(Path(path))
    if os.access(RESET, os.W_OK):
        RESET.write_text("5")  # forget the peak so far
    before, free = _now("VmRSS"), _free_on_device()
    engine = load_engine(path)
    tensors = [tensor.to(engine.device) for tensor in tensors]
    for _ in range(3):
        engine.run(tensors)
    return max(0, free - _free_on_device() if engine.device == "cuda" else _now("VmHWM") - before)


def _free_on_device() -> int:
    if not torch.cuda.is_available():
        return 0
    torch.cuda.synchronize()
    return torch.cuda.mem_get_info()[0]


if __name__ == "__main__":
    import optin_fx.lowering  # noqa: F401 - registers the targets

    sys.stdout.write(f"{main(*sys.argv[1:])}\n")

"""Everything that must be green, in one command: `python tools/check.py [lint] [types] [tests]`.

Without arguments all three run, also after a failure, so that one run shows everything that is wrong.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TOOL = [sys.executable, "-m"]
STEPS: dict[str, list[list[str]]] = {
    "lint": [[*TOOL, "ruff", "check", "."], [*TOOL, "ruff", "format", "--check", "."]],
    "types": [[*TOOL, "mypy"]],
    # the tests are independent of each other, and each keeps to one thread: one process per core.
    # "worksteal" hands the slow model tests out one by one
    "tests": [[*TOOL, "pytest", "-n", str(max(1, len(os.sched_getaffinity(0)))), "--dist", "worksteal"]],
}


def main(names: list[str]) -> int:
    unknown = [name for name in names if name not in STEPS]
    if unknown:
        print(f"unknown step {', '.join(unknown)}; choose from {', '.join(STEPS)}", file=sys.stderr)
        return 2
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    failed = []
    for name in names or STEPS:
        for command in STEPS[name]:
            start = time.perf_counter()
            print(f"== {name}: {' '.join(command[2:])}", flush=True)
            code = subprocess.run(command, cwd=ROOT, env=environment).returncode
            print(f"== {name}: {'ok' if code == 0 else f'failed ({code})'} in {time.perf_counter() - start:.0f} s", flush=True)
            if code:
                failed.append(name)
    if failed:
        print(f"failed: {', '.join(dict.fromkeys(failed))}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

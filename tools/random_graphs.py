"""Random graphs by the thousand: `python tools/random_graphs.py --first 0 --count 1000 --log graphs.jsonl`.

Each seed is one random module (`tests/random_graphs.py`) with two random plans; sliced must equal masked. Seeds that the log holds are
not tried again, so that a run can be broken off; failing seeds are printed, and kept with their error.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Annotated

import torch
import typer

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from test_random_graphs import check  # noqa: E402


def main(
    first: Annotated[int, typer.Option(help="first seed")] = 0,
    count: Annotated[int, typer.Option(help="how many seeds")] = 1000,
    log: Annotated[Path, typer.Option(help="one JSON line for every seed tried")] = Path("random-graphs.jsonl"),
) -> None:
    """Try the seeds; exit code 1 if one of them fails."""
    torch.set_num_threads(1)
    done = {json.loads(line)["seed"] for line in log.read_text().splitlines()} if log.is_file() else set()
    failed, start = [], time.perf_counter()
    with log.open("a") as file:
        for seed in range(first, first + count):
            if seed in done:
                continue
            fact: dict[str, object] = {"seed": seed}
            try:
                fact["free"] = check(seed)
            except Exception as error:  # noqa: BLE001  a seed that fails is a finding, and the next seeds are tried
                fact["error"] = f"{type(error).__name__}: {error}"
                failed.append(seed)
                print(f"FAILED {seed}: {fact['error']}", flush=True)
            print(json.dumps(fact), file=file, flush=True)
    print(f"seeds {first} to {first + count - 1}: {len(failed)} failed {failed} ({time.perf_counter() - start:.0f} s)", flush=True)
    raise typer.Exit(int(bool(failed)))


if __name__ == "__main__":
    typer.run(main)

"""Train the models of the offline tasks that are not in the cache yet: `python tools/train_zoo.py [task …]`.

Seeded, and at most 15 minutes a task on two free cores. On the same kind of processor a second run gives the same
weights.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from tasks import NAMES, NotCached, cache, task


def figures(metrics: dict[str, float]) -> str:
    return "  ".join(f"{name} {value:.4f}" for name, value in metrics.items())


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*", metavar="task", help=f"which ones; without any, all of {', '.join(NAMES)}")
    parser.add_argument("--again", action="store_true", help="train what is there already, too")
    parser.add_argument("--check", action="store_true", help="train nothing; evaluate the dense models again")
    options = parser.parse_args(arguments)
    unknown = set(options.tasks) - set(NAMES)
    if unknown:
        parser.error(f"no task is called {', '.join(sorted(unknown))}; choose from {', '.join(NAMES)}")

    for name in options.tasks or NAMES:
        chosen = task(name)
        try:
            if options.check:
                print(f"{name:<14}{figures(chosen.evaluate(chosen.model()))}", flush=True)
            elif cache.has_checkpoint(name) and not options.again:
                print(f"{name:<14}cached", flush=True)
            elif not chosen.needs_training and not options.again:
                print(f"{name:<14}uses published weights", flush=True)
            else:
                facts = chosen.train()
                print(f"{name:<14}{facts['seconds']} s  {figures(facts['dense'])}", flush=True)
        except NotCached as error:
            print(f"{name:<14}skipped\n{error}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

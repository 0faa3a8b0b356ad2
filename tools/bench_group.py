"""How long grouping takes: the seven published models, a transformer at depth 12 to 96, a graph of 10,000 nodes, and the whole zoo.

    python tools/bench_group.py [--quick] [--zoo]

Tracing is not counted. Each figure is the processor time of the best of five fresh analyses, in one thread, so that other work on the
machine does not show; memory is the peak of what Python allocates, beside the program's own.
"""

from __future__ import annotations

import argparse
import statistics
import time
import tracemalloc

import torch
from torch import Tensor, nn

from optin_fx.analysis import Analysis, analyse
from optin_fx.groups import groups_of
from optin_fx.program import Program, trace
from optin_fx.testing import published, zoo

LIMIT_MODEL, LIMIT_LARGE = 0.1, 1.0  # seconds
PACE = 10.0  # ms per 100 nodes, on every model


class Encoder(nn.Module):
    """Layers of torch's own transformer, small, for graphs of any depth."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.TransformerEncoderLayer(24, 3, 32, batch_first=True) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            attended = layer.self_attn(x, x, x, need_weights=False)[0]
            x = layer.norm1(x + attended)
            x = layer.norm2(x + layer.linear2(layer.linear1(x).relu()))
        return x.mean(1)


class Chain(nn.Module):
    """Residual blocks, about eight nodes each: what a very large graph costs."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 4)) for _ in range(blocks))
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + layer(x)
        return self.head(x)


def seconds(program: Program) -> float:
    """Best of five: walk the graph, read the groups off."""
    import optin_fx.rules  # noqa: F401

    analyse(program)  # everything cached on the program (module, tensors) is there before the clock starts
    found = []
    for _ in range(5):
        start = time.process_time()
        groups_of(Analysis(program).run())
        found.append(time.process_time() - start)
    return min(found)


def megabytes(program: Program) -> float:
    """What Python holds more at the height of an analysis."""
    tracemalloc.start()
    groups_of(Analysis(program).run())
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return most / 1e6


def row(name: str, program: Program, limit: float | None = None) -> None:
    nodes, took = len(program.graph_module.graph.nodes), seconds(program)
    verdict = "" if limit is None else f"   limit {1e3 * limit:.0f} ms: {'ok' if took <= limit else 'TOO SLOW'}"
    pace, memory = 1e6 * took / nodes, megabytes(program)
    print(f"{name:<22} {nodes:>6} nodes {1e3 * took:>8.1f} ms {pace:>6.0f} us/node {memory:>6.1f} MB{verdict}", flush=True)


def whole_zoo() -> None:
    """The pace over the zoo at test sizes, and the models that are slower than they should be."""
    paces = {}
    for entry in zoo.ENTRIES:
        program = entry.program()
        paces[entry.name] = 1e5 * seconds(program) / len(program.graph_module.graph.nodes)
    slowest = max(paces, key=lambda name: paces[name])
    slow = [f"{name} {pace:.1f}" for name, pace in paces.items() if pace > PACE]
    middle = statistics.median(paces.values())
    print(f"zoo: {len(paces)} models, median {middle:.1f} ms per 100 nodes, worst {paces[slowest]:.1f} ({slowest})")
    print(f"zoo: models above {PACE:g} ms per 100 nodes: {', '.join(slow) or 'none'}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="models with fewer layers, depths 12 and 24, no large graph")
    parser.add_argument("--zoo", action="store_true", help="also every model of the zoo, some minutes")
    options = parser.parse_args()
    quick = options.quick
    torch.set_num_threads(1)
    for name in published.MODELS:
        row(name, published.program(name, brief=quick), LIMIT_MODEL)
    for depth in (12, 24) if quick else (12, 24, 48, 96):
        row(f"encoder, depth {depth}", trace(Encoder(depth).eval(), (torch.randn(2, 5, 24),)))
    if not quick:
        row("chain", trace(Chain(1250).eval(), (torch.randn(2, 4),)), LIMIT_LARGE)
    if options.zoo:
        whole_zoo()


if __name__ == "__main__":
    main()

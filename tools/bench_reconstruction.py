"""What `rewrite-reconstruct` takes and brings.

python tools/bench_reconstruction.py memory [--limit "1 GB"]               peak memory and time, MiniLM's shape, 512 texts of 40 tokens
python tools/bench_reconstruction.py logits mnist-vit head-dim --keep 0.5  a task's metrics with half of the query-key dims, by magnitude,
                                                                           with and without refitted attention logits, three draws
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from contextlib import nullcontext

import torch
from latency.models import MINILM, bert, texts
from tasks import task

import optin_fx as ofx
from optin_fx.execution import execution
from optin_fx.passes import RewriteReconstruct
from optin_fx.pipeline import State
from optin_fx.reconstruction import reconstruct

TEXTS, ROWS, TOKENS = 512, 32, 40


def memory(limit: str | None) -> None:
    """Heads and neurons by half, at random; what scores and tracing take is taken before."""
    torch.manual_seed(0)
    model = bert(**MINILM)[0].eval()
    data = [ofx.Batch((), texts(ROWS, TOKENS)) for _ in range(TEXTS // ROWS)]
    batch = torch.export.Dim("batch")
    program = ofx.trace(model, (), data[0].kwargs, {"input_ids": {0: batch}, "attention_mask": {0: batch}})
    groups = [g for g in ofx.group(program).free if g.kind in ("head", "neuron")]
    plan = ofx.make_plan(program, {g.name: torch.randperm(g.extent)[: g.extent // 2].tolist() for g in groups})
    with torch.no_grad():
        program(**data[0].kwargs)
    before, start = _resident(), time.process_time()
    with execution(memory_limit=limit) if limit else nullcontext():
        reconstruct(program, plan, data)
    seconds, peak = time.process_time() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    weights = sum(p.numel() * p.element_size() for p in model.parameters()) / 2**20
    print(f"weights {weights:.0f} MB; peak {peak - before:.0f} MB above what was taken before, sliced weights included")
    print(f"{seconds:.1f} s of CPU time")


def _resident() -> float:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 2**20


def logits(name: str, kind: str, keep: float) -> None:
    """A task's metrics when all groups of a kind lose the same share."""
    own = task(name)
    args, kwargs = own.example()
    program = ofx.trace(own.model(), args, kwargs, own.dynamic_shapes())
    scores = ofx.score(program, "magnitude")
    groups = [g for g in ofx.group(program).free if g.kind == kind]
    plan = ofx.make_plan(program, {g.name: scores[g.name].topk(round(keep * g.extent)).indices.tolist() for g in groups})
    print("dense", own.evaluate(program))
    print("sliced", own.evaluate(ofx.rewrite(program, plan)))
    for seed in range(3):
        data = [ofx.Batch((), one) if isinstance(one, dict) else ofx.Batch(one) for one in own.calibration(512, seed, batch=32)]
        for refit in (False, True):
            small = RewriteReconstruct(layers="consumers", logits=refit).apply(State(program, data, plan=plan)).small
            assert small is not None
            print(f"draw {seed}, {'consumers and logits' if refit else 'consumers'} refitted", own.evaluate(small))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    by_memory = commands.add_parser("memory")
    by_memory.add_argument("--limit", help="of the values, as in execution(memory_limit=...)")
    by_logits = commands.add_parser("logits")
    by_logits.add_argument("task")
    by_logits.add_argument("kind", help="qk-dim, or head-dim where queries, keys and values are one projection")
    by_logits.add_argument("--keep", type=float, default=0.5, help="share of the units of every such group that stays")
    options = parser.parse_args()
    if options.command == "memory":
        memory(options.limit)
    else:
        logits(options.task, options.kind, options.keep)
    return 0


if __name__ == "__main__":
    sys.exit(main())

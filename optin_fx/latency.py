"""`measure`: what a smaller program costs to run, beside the one that it came from, by a stated protocol."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from optin_fx.environment import environment
from optin_fx.errors import DataError
from optin_fx.latency_grid import grid
from optin_fx.lowering import Engine, Signature, lower, parse_target
from optin_fx.lowering.check import tensors_of
from optin_fx.lowering.closeness import closeness
from optin_fx.lowering.cuda_graph import captured
from optin_fx.lowering.memory import peak_memory
from optin_fx.program import Program
from optin_fx.report import Agreement, EngineFacts, Latency, Ratio, Report
from optin_fx.timing import BLOCK, CONFIDENCE, RESAMPLES, Repeats, calls_per_sample, interleaved, ratio_interval, warm_up

COST_FIELDS = ("flops", "macs", "params", "bytes")
Candidates = Program | Mapping[str, Program]


def measure(
    before: Candidates,
    after: Candidates | None = None,
    target: str = "onnxruntime:cpu",
    *,
    args: Sequence[Any] | None = None,
    kwargs: Mapping[str, Any] | None = None,
    batches: Sequence[int] | None = None,
    lengths: Sequence[int] | Mapping[str, Sequence[int]] | None = None,
    threads: int | None = None,
    repeats: Repeats | None = None,
    reference: Candidates | None = None,
    costs: Mapping[str, Any] | None = None,
    metrics: Mapping[str, Mapping[str, float]] | None = None,
    memory: bool = False,
    cuda_graphs: bool = False,
    seed: int = 0,
    **options: Any,
) -> Report:
    """Time engines of two or more programs, interleaved in one process.

    Args:
        before: the baseline, or candidates by name, of which the first is the baseline.
        after: the smaller program, or more candidates by name. One program alone is called "before" or "after".
        target: as for `lower`; the same settings for every candidate.
        args, kwargs: the call to time; by default the baseline's example inputs.
        batches: batch sizes to time; rows of the call are repeated. By default the call as it is.
        lengths: sizes of the other dynamic dim to time, tokens for instance, each with each batch size; `{dim: sizes}` where there are
            several such dims.
        threads: CPU threads, the same for every candidate; by default as many as torch uses.
        repeats: how long to measure; see `timing.Repeats`.
        reference: what the outputs of the candidates after the first should equal, such as the masked dense program.
        costs: per candidate a mapping, or an object with attributes, of flops, macs, params and bytes.
        metrics: per candidate any named figures of quality, shown in the report as they are.
        memory: also measure each engine's peak memory, in a fresh process each (a few seconds).
        cuda_graphs: replay each engine's run as one CUDA graph; on engines that cannot be captured it is refused.
        seed: of the order of runs and of the bootstrap.
        options: the target's own, as for `lower`.

    Returns:
        A `Report`: latencies in milliseconds, throughput in rows per second, ratios baseline / candidate with a 95 % confidence
        interval, agreement of every engine with its program, protocol and environment.

    Raises:
        LoweringError: an engine cannot be built, or cannot run here.
        DataError: a batch size that the program does not take, or names that do not match.
    """
    programs = _candidates(before, after)
    baseline = next(iter(programs))
    repeats = repeats or Repeats()
    if args is None and kwargs is None:
        args, kwargs = programs[baseline].args, programs[baseline].kwargs
    call = (tuple(args or ()), dict(kwargs or {}))
    if isinstance(reference, Program):
        reference = {name: reference for name in programs if name != baseline}
    references = _known("reference", reference, programs)
    costs, metrics = _known("costs", costs, programs), _known("metrics", metrics, programs)
    latencies: list[Latency] = []
    ratios: list[Ratio] = []
    agreements: list[Agreement] = []
    with _threads(threads) as used:
        around = environment()
        engines = {name: lower(program, target, check=False, **options) for name, program in programs.items()}
        for engine in engines.values():
            engine.require_runnable()
        first_run: dict[str, float] = {}
        signature = engines[baseline].signature
        for sizes in grid(signature, batches, lengths):
            args, kwargs = signature.resized(*call, sizes)
            rows = sizes.get("batch") or _rows(signature, args, kwargs)
            length = next((size for name, size in sizes.items() if name != "batch"), None)
            calls = {name: _runner(engine, args, kwargs, cuda_graphs) for name, engine in engines.items()}
            counts = {}
            for name, run in calls.items():
                times = warm_up(run, device=engines[name].device)
                first_run.setdefault(name, times[0])
                counts[name] = calls_per_sample(float(np.median(times[-5:])))
                agreements += _agreements(name, engines[name], programs[name], references.get(name), args, kwargs, (rows, length))
            samples = interleaved(calls, counts, device=engines[baseline].device, repeats=repeats, seed=seed)
            latencies += [_latency(name, rows, length, samples[name], counts[name]) for name in samples]
            others = list(samples)[1:]
            ratios += [Ratio(baseline, name, rows, *ratio_interval(samples[baseline], samples[name], seed), length) for name in others]
        args, kwargs = call
        facts = {
            name: EngineFacts(
                build_s=engine.facts["build_s"],
                first_run_ms=first_run[name] * 1e3,
                peak_bytes=peak_memory(engine, args, kwargs, used) if memory else None,
                info={key: value for key, value in engine.facts.items() if key in ("settings", "nodes", "opset", "weight_bytes")},
            )
            for name, engine in engines.items()
        }
    parsed = parse_target(target)
    return Report(
        target=parsed.text,
        protocol={
            "threads": used,
            "precision": parsed.precision,
            "device": parsed.device,
            "order": "interleaved in one process, in random order in each round",
            "warm_up": "until two windows of five calls agree within 10 %",
            "repeats": asdict(repeats),
            "ratio": f"of medians, {CONFIDENCE:.0%} percentile bootstrap over blocks of {BLOCK} rounds, {RESAMPLES} resamples",
            "timed": "device events around engine.run" if parsed.device == "cuda" else "wall clock around engine.run on flat tensors",
            "cuda_graphs": cuda_graphs,
            "options": {key: repr(value) for key, value in options.items()},
            "seed": seed,
        },
        environment=around,
        latencies=tuple(latencies),
        ratios=tuple(ratios),
        agreements=tuple(agreements),
        engines=facts,
        costs={name: cost_row(cost) for name, cost in costs.items()},
        metrics={name: dict(row) for name, row in metrics.items()},
    )


def cost_row(cost: Any) -> dict[str, float]:
    """flops, macs, params and bytes, as far as the mapping or object has them."""
    if isinstance(cost, Mapping):
        return {field: float(cost[field]) for field in COST_FIELDS if cost.get(field) is not None}
    return {field: float(getattr(cost, field)) for field in COST_FIELDS if getattr(cost, field, None) is not None}


def _known(what: str, given: Mapping[str, Any] | None, programs: Mapping[str, Program]) -> dict[str, Any]:
    unknown = sorted(set(given or {}) - set(programs))
    if unknown:
        raise DataError(f"{what} speaks of {unknown[0]!r}, which is not measured", fix=f"use the names {', '.join(programs)}")
    return dict(given or {})


def _candidates(before: Candidates, after: Candidates | None) -> dict[str, Program]:
    first = {"before": before} if isinstance(before, Program) else dict(before)
    second = {"after": after} if isinstance(after, Program) else dict(after or {})
    twice = sorted(set(first) & set(second))
    if twice:
        raise DataError(f"two candidates are called {twice[0]!r}", fix="give each its own name")
    if not first:
        raise DataError("there is nothing to measure", fix="pass a program, or programs by name")
    return {**first, **second}


@contextmanager
def _threads(threads: int | None) -> Iterator[int]:
    # every CPU backend takes its default from torch, so this one setting serves them all
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        yield threads or before
    finally:
        torch.set_num_threads(before)


def _rows(signature: Signature, args: Any, kwargs: Any) -> int:
    for tensor, leaf in zip(signature.flatten(args, kwargs), signature.tensor_inputs, strict=True):
        for dim, size in enumerate(leaf.sizes):
            if size == "batch":
                return tensor.shape[dim]
    leading = [tensor.shape[0] for tensor in signature.flatten(args, kwargs) if tensor.dim()]
    return leading[0] if leading else 1


def _runner(engine: Engine, args: Any, kwargs: Any, cuda_graphs: bool) -> Callable[[], object]:
    inputs = [tensor.to(engine.device) for tensor in engine.signature.flatten(args, kwargs)]
    return captured(engine, inputs) if cuda_graphs else lambda: engine.run(inputs)


def _agreements(
    name: str, engine: Engine, program: Program, reference: Program | None, args: Any, kwargs: Any, size: tuple[int, int | None]
) -> list[Agreement]:
    rows, length = size
    found = tensors_of(engine(*args, **kwargs))
    against = {"its program": program} | ({"reference": reference} if reference is not None else {})
    gaps = {text: closeness(found, tensors_of(other(*args, **kwargs))) for text, other in against.items()}
    return [Agreement(name, text, rows, gap.max_abs, gap.max_rel, gap.unequal, length) for text, gap in gaps.items()]


def _latency(name: str, rows: int, length: int | None, seconds: Sequence[float], count: int) -> Latency:
    milliseconds = np.asarray(seconds) * 1e3
    p25, p50, p75, p90, p99 = (float(value) for value in np.percentile(milliseconds, [25, 50, 75, 90, 99]))
    return Latency(
        candidate=name,
        batch=rows,
        median_ms=p50,
        p90_ms=p90,
        p99_ms=p99,
        spread=(p75 - p25) / p50,
        rows_per_s=rows / p50 * 1e3,
        calls_per_sample=count,
        samples_ms=tuple(round(float(value), 6) for value in milliseconds),
        length=length,
    )

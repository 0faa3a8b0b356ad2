"""Timing of several callables side by side: interleaved in random order, warmed up, repeated until the ratio is known well enough."""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

WINDOW = 5
STABLE_WITHIN = 0.1
LEAST_SAMPLE_S = 1e-3
RESAMPLES = 2000
# rounds next to each other see the same other load, so they are resampled together
BLOCK = 5
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Repeats:
    """How long to measure.

    Attributes:
        least, most: rounds, each of which times every candidate once.
        precision: stop once the confidence interval of every ratio is narrower than this fraction of the ratio, to each side.
        seconds: stop after this time, however wide the interval is (but not before `least` rounds).
    """

    least: int = 20
    most: int = 200
    precision: float = 0.02
    seconds: float = 30.0


def warm_up(call: Callable[[], object], *, device: str, most: int = 60, seconds: float = 5.0) -> list[float]:
    """Call until two windows of five calls have medians within 10 % of each other; returns all times in seconds, the first first."""
    times = [timed(call, 1, device)]  # the first may compile for half a minute
    started = time.perf_counter()
    while len(times) < most and (time.perf_counter() - started < seconds or len(times) < 2):
        times.append(timed(call, 1, device))
        if len(times) >= 2 * WINDOW + 1:
            recent, earlier = float(np.median(times[-WINDOW:])), float(np.median(times[-2 * WINDOW : -WINDOW]))
            if abs(recent - earlier) <= STABLE_WITHIN * earlier:
                break
    return times


def calls_per_sample(seconds: float) -> int:
    """How many calls make one sample, so that the clock's own cost does not count: one, unless a call is shorter than 1 ms."""
    return max(1, round(LEAST_SAMPLE_S / max(seconds, 1e-9))) if seconds < LEAST_SAMPLE_S else 1


def timed(call: Callable[[], object], count: int, device: str) -> float:
    """Seconds per call, over `count` calls; by device events on CUDA."""
    if device == "cuda":
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize()
        begin.record()
        for _ in range(count):
            call()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3 / count
    started = time.perf_counter()
    for _ in range(count):
        call()
    return (time.perf_counter() - started) / count


def interleaved(
    calls: Mapping[str, Callable[[], object]], counts: Mapping[str, int], *, device: str, repeats: Repeats, seed: int = 0
) -> dict[str, list[float]]:
    """Seconds per call and round, for each candidate. The first candidate is the baseline of the ratios that end the measurement."""
    names = list(calls)
    samples: dict[str, list[float]] = {name: [] for name in names}
    shuffle = random.Random(seed).shuffle
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    started = time.perf_counter()
    try:
        for rounds in range(1, repeats.most + 1):
            order = list(names)
            shuffle(order)
            for name in order:
                samples[name].append(timed(calls[name], counts[name], device))
            if rounds < repeats.least or rounds % WINDOW:
                continue
            if time.perf_counter() - started > repeats.seconds:
                break
            bounds = [ratio_interval(samples[names[0]], samples[name], seed) for name in names[1:]]
            if all(max(high - middle, middle - low) <= repeats.precision * middle for middle, low, high in bounds):
                break
    finally:
        if collecting:
            gc.enable()
    return samples


def ratio_interval(baseline: Sequence[float], candidate: Sequence[float], seed: int = 0) -> tuple[float, float, float]:
    """Ratio of medians baseline / candidate, with a 95 % percentile-bootstrap interval over blocks of consecutive rounds."""
    pairs = np.asarray([baseline, candidate])
    rounds = pairs.shape[1]
    block = max(1, min(BLOCK, rounds // 4))  # a block as long as the sample would leave nothing to chance
    starts = np.random.default_rng(seed).integers(0, rounds, (RESAMPLES, -(-rounds // block)))
    picks = ((starts[:, :, None] + np.arange(block)) % rounds).reshape(RESAMPLES, -1)[:, :rounds]
    medians = np.median(pairs[:, picks], axis=2)
    ratios = medians[0] / medians[1]
    low, high = np.quantile(ratios, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    middle = np.median(pairs[0]) / np.median(pairs[1])
    return float(middle), float(min(low, middle)), float(max(high, middle))

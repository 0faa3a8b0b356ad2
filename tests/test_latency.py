"""Measuring: what the report says, and what is refused. No test asserts how fast something is, but for one sure ratio."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from torch import nn

import optin_fx as ofx
from optin_fx.errors import DataError, LoweringError
from optin_fx.latency import cost_row, measure
from optin_fx.report import Report
from optin_fx.timing import Repeats, calls_per_sample, interleaved, ratio_interval, warm_up

FEW = Repeats(least=10, most=10, seconds=5)


def mlp(hidden: int) -> ofx.Program:
    torch.manual_seed(0)
    return ofx.trace(nn.Sequential(nn.Linear(64, hidden), nn.ReLU(), nn.Linear(hidden, 64)), (torch.randn(4, 64),))


@pytest.fixture(scope="module")
def dense() -> ofx.Program:
    return mlp(2048)


@pytest.fixture(scope="module")
def small() -> ofx.Program:
    return mlp(64)


def test_two_programs_on_a_grid_of_batches(dense: ofx.Program, small: ofx.Program) -> None:
    threads = torch.get_num_threads()
    report = measure(dense, small, "eager", batches=(1, 512), threads=1, repeats=FEW, reference=dense, seed=3)
    assert torch.get_num_threads() == threads
    assert report.candidates == ("before", "after")
    assert report.batches == (1, 512)
    assert report.ratio(batch=512).ratio > 2
    assert [len(item.samples_ms) for item in report.latencies] == [10] * 4
    item = report.latency("after", 512)
    assert item.rows_per_s == pytest.approx(512 / item.median_ms * 1e3)
    assert item.median_ms <= item.p90_ms <= item.p99_ms
    own = [gap for gap in report.agreements if gap.against == "its program"]
    assert max(gap.max_rel for gap in own) < 1e-5
    other = [gap for gap in report.agreements if gap.against == "reference"]
    assert {gap.candidate for gap in other} == {"after"}
    assert min(gap.max_rel for gap in other) > 0.01
    assert report.protocol["threads"] == 1
    assert report.protocol["seed"] == 3
    assert {"cpu", "cpus", "load_average", "versions", "python"} <= set(report.environment)
    assert report.engines["after"].first_run_ms > 0


def test_more_than_two_candidates(dense: ofx.Program, small: ofx.Program) -> None:
    costs = {"dense": {"flops": 100.0}, "half": {"flops": 50.0, "params": 3}}
    report = measure({"dense": dense, "half": small, "random": small}, target="eager", repeats=FEW, costs=costs)
    assert [(item.baseline, item.candidate) for item in report.ratios] == [("dense", "half"), ("dense", "random")]
    assert report.batches == (4,)
    assert report.efficiency("half") == pytest.approx(report.ratio("half").ratio / 2)
    assert report.efficiency("random") is None


def test_onnxruntime_by_default_and_with_its_peak_memory(dense: ofx.Program, small: ofx.Program) -> None:
    pytest.importorskip("onnxruntime")
    report = measure(dense, small, repeats=FEW, memory=True, spinning=False)
    assert report.target == "onnxruntime:cpu"
    assert report.engines["before"].info["settings"]["spinning"] is False
    peaks = [report.engines[name].peak_bytes for name in ("before", "after")]
    assert all(peak is None or peak > 0 for peak in peaks)


def test_the_call_can_be_given(dense: ofx.Program, small: ofx.Program) -> None:
    assert measure(dense, small, "eager", args=(torch.randn(7, 64),), repeats=FEW).batches == (7,)


class Tokens(nn.Module):
    """Two dynamic dims, and an output that depends on both."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.linear = nn.Embedding(9, 16), nn.Linear(16, 16)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return self.linear(self.table(ids) * mask.unsqueeze(-1)).sum(1)


def tokens() -> ofx.Program:
    sizes = {0: torch.export.Dim("batch", max=64), 1: torch.export.Dim("length", min=2, max=32)}
    return ofx.trace(Tokens(), (torch.randint(0, 9, (2, 8)), torch.ones(2, 8)), dynamic_shapes=(sizes, sizes))


def test_a_grid_of_batches_and_lengths() -> None:
    program = tokens()
    costs = {"before": {"flops": 2.0}, "after": {"flops": 1.0}}
    report = measure(program, program, "onnxruntime:cpu", batches=(1, 4), lengths=(8, 16), repeats=FEW, costs=costs)
    points = [(item.batch, item.length) for item in report.latencies if item.candidate == "before"]
    assert points == [(1, 8), (1, 16), (4, 8), (4, 16)]
    assert report.lengths == (8, 16)
    assert report.ratio("after", 4, 16) is report.ratios[-1]
    assert report.latency("after", 4, 16).rows_per_s > 0
    assert report.efficiency("after", 4) is None  # the FLOPs were counted at one length
    assert {(gap.batch, gap.length) for gap in report.agreements} == set(points)
    assert Report.from_json(report.to_json()) == report
    assert "| 16 " in report.to_markdown()
    assert "batch 4, length 16" in report.to_html()


def test_lengths_that_are_refused(dense: ofx.Program) -> None:
    program = tokens()
    with pytest.raises(DataError) as error:
        measure(program, target="eager", lengths=(64,))
    assert str(error.value) == (
        "the program does not take a ids_dim1 of 64\n  at  ids_dim1 from 2 to 32\n"
        "  fix trace it with a dynamic dim of that size, or leave lengths out"
    )
    with pytest.raises(DataError) as error:
        measure(program, target="eager", lengths={"tokens": (8,)})
    assert str(error.value) == "lengths speaks of tokens\n  fix name one dynamic dim out of ids_dim1"
    with pytest.raises(DataError) as error:
        measure(dense, target="eager", lengths=(8,))
    assert str(error.value) == (
        "the program has 0 dynamic dims besides the batch\n  so  it is not clear which of them the lengths are sizes of\n"
        "  fix trace it with a dynamic length, as in dynamic_shapes={'input_ids': {0: Dim('batch'), 1: Dim('length', max=512)}}"
    )


def test_a_cpu_run_is_no_cuda_graph(dense: ofx.Program) -> None:
    with pytest.raises(LoweringError, match="a run of eager:cpu cannot be captured as a CUDA graph"):
        measure(dense, target="eager", repeats=FEW, cuda_graphs=True)


@pytest.mark.gpu
@pytest.mark.parametrize("cuda_graphs", [False, True])
def test_on_a_gpu(dense: ofx.Program, small: ofx.Program, cuda_graphs: bool) -> None:
    report = measure(dense, small, "eager:cuda", batches=(512,), repeats=FEW, cuda_graphs=cuda_graphs, memory=True)
    assert report.protocol["timed"].startswith("device events")
    assert max(gap.max_rel for gap in report.agreements) < 1e-4
    assert report.engines["before"].peak_bytes


def test_what_is_refused(dense: ofx.Program, small: ofx.Program) -> None:
    fixed = ofx.trace(nn.Linear(3, 3), (torch.randn(2, 3),), dynamic_shapes={})
    with pytest.raises(DataError) as error:
        measure(fixed, target="eager", batches=(8,))
    assert str(error.value) == (
        "the program does not take a batch of 8\n  at  its batch is fixed\n"
        "  fix trace it with a dynamic leading dim named batch, or leave batches out"
    )
    with pytest.raises(DataError) as error:
        measure({"a": dense}, {"a": small}, "eager")
    assert str(error.value) == "two candidates are called 'a'\n  fix give each its own name"
    with pytest.raises(DataError) as error:
        measure({}, target="eager")
    assert str(error.value) == "there is nothing to measure\n  fix pass a program, or programs by name"
    for what in ("costs", "metrics", "reference"):
        with pytest.raises(DataError) as error:
            measure(dense, small, "eager", **{what: {"other": dense if what == "reference" else {}}})
        assert str(error.value) == f"{what} speaks of 'other', which is not measured\n  fix use the names before, after"
    with pytest.raises(LoweringError, match="unknown target"):
        measure(dense, small, "nowhere")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_an_engine_that_cannot_run_is_not_timed(dense: ofx.Program) -> None:
    pytest.importorskip("tensorrt_rtx")
    with pytest.raises(LoweringError, match="was built, but cannot run here"):
        measure(dense, target="tensorrt-rtx", profile={"batch": (1, 2, 4)})


def test_costs_come_as_mappings_or_objects() -> None:
    class Cost:
        flops, params = 10, 5

    assert cost_row(Cost()) == {"flops": 10.0, "params": 5.0}
    assert cost_row({"macs": 5, "bytes": None}) == {"macs": 5.0}


# -- timing ------------------------------------------------------------------------------------------------------


def test_the_interval_holds_the_true_ratio_as_often_as_it_says() -> None:
    noise = np.random.default_rng(1)
    hits = 0
    for trial in range(60):
        load = 1 + 0.3 * np.repeat(noise.random(8), 5)  # other work comes and goes, and both candidates feel it
        baseline, candidate = (base * load * (1 + 0.05 * noise.random(40)) for base in (2.0, 1.0))
        middle, low, high = ratio_interval(list(baseline), list(candidate), trial)
        assert low <= middle <= high
        hits += low <= 2.0 <= high
    assert hits >= 50


def test_a_known_ratio_is_found_with_rounds_interleaved() -> None:
    order: list[str] = []

    def sleeper(name: str, seconds: float) -> None:
        order.append(name)
        time.sleep(seconds)

    calls = {"slow": lambda: sleeper("slow", 0.04), "fast": lambda: sleeper("fast", 0.02)}  # long beside a late wake-up
    samples = interleaved(calls, {"slow": 1, "fast": 1}, device="cpu", repeats=Repeats(least=10, most=30, precision=0.5))
    assert 1.4 < ratio_interval(samples["slow"], samples["fast"])[0] < 2.6
    pairs = list(zip(order[::2], order[1::2], strict=True))
    assert all(set(pair) == {"slow", "fast"} for pair in pairs)
    assert len(set(pairs)) == 2


def test_rounds_end_by_precision_by_time_and_by_count() -> None:
    def rounds(**repeats: float) -> int:
        options = Repeats(**{"least": 5, "most": 50, "precision": 0.0, "seconds": 60.0, **repeats})  # type: ignore[arg-type]
        calls = {"a": lambda: time.sleep(0.001), "b": lambda: time.sleep(0.001)}
        return len(interleaved(calls, {"a": 1, "b": 1}, device="cpu", repeats=options)["a"])

    assert rounds(most=20) == 20
    assert rounds(precision=100.0) == 5
    assert rounds(seconds=0.0) == 5


def test_warm_up_goes_on_until_times_are_stable() -> None:
    pauses = iter([0.05, 0.02, 0.01] + [0.002] * 100)
    times = warm_up(lambda: time.sleep(next(pauses)), device="cpu")
    assert times[0] > 0.04
    assert len(times) >= 11


def test_short_calls_are_timed_in_groups() -> None:
    assert calls_per_sample(0.01) == 1
    assert calls_per_sample(1e-5) == 100

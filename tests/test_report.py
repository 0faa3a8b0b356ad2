"""Forms of a report. In none of them does a figure stand without its protocol."""

from __future__ import annotations

import dataclasses
import io
import json
import re
from pathlib import Path

import pytest
from rich.console import Console

from optin_fx.errors import LoadError, MissingExtra, SaveError
from optin_fx.report import Agreement, EngineFacts, Latency, Ratio, Report


def latency(name: str, batch: int, median: float) -> Latency:
    samples = tuple(median * (1 + 0.01 * step) for step in range(-2, 3))
    return Latency(name, batch, median, median * 1.1, median * 1.2, 0.02, batch / median * 1e3, 1, samples)


@pytest.fixture
def report() -> Report:
    return Report(
        target="onnxruntime:cpu",
        protocol={
            "threads": 2, "precision": "fp32", "device": "cpu", "order": "interleaved", "warm_up": "until stable", "repeats": {},
            "ratio": "of medians", "timed": "wall clock", "options": {}, "seed": 0,
        },
        environment={
            "cpu": "Some CPU", "cpus": 2, "cpu_features": "AVX2", "load_average": [3.0, 1.0, 1.0], "gpu": None, "system": "Linux x86_64",
            "python": "3.11.0", "versions": {"torch": "2.11"}, "time": "2026-01-01T00:00:00+00:00",
        },
        latencies=(latency("dense", 1, 4.0), latency("half|small", 1, 2.5), latency("dense", 8, 30.0), latency("half|small", 8, 15.0)),
        ratios=(Ratio("dense", "half|small", 1, 1.6, 1.55, 1.66), Ratio("dense", "half|small", 8, 2.0, 1.95, 2.04)),
        agreements=(
            Agreement("dense", "its program", 1, 1e-6, 2e-7, 0.0), Agreement("half|small", "its program", 1, 1e-6, 3e-7, 0.0),
            Agreement("half|small", "its program", 8, 1e-6, 4e-7, 0.25), Agreement("half|small", "reference", 8, 1e-5, 5e-6, 0.0),
        ),
        engines={"dense": EngineFacts(1.0, 9.0, 3 * 2**20, {"nodes": 7}), "half|small": EngineFacts(0.5, 5.0)},
        costs={"dense": {"flops": 2e9, "params": 1e6}, "half|small": {"flops": 1e9, "params": 4e5}},
        metrics={"half|small": {"cosine": 0.987654}},
    )  # fmt: skip


def test_json_there_and_back(report: Report) -> None:
    assert Report.from_json(report.to_json()) == report
    assert json.loads(report.to_json())["latencies"][0]["samples_ms"]


@pytest.mark.parametrize("text", ["", "[]", '{"format": 2}', '{"format": 1}', "null"])
def test_other_texts_are_no_reports(text: str) -> None:
    with pytest.raises(LoadError) as error:
        Report.from_json(text)
    assert str(error.value).startswith("not a report: ")
    assert str(error.value).endswith("\n  fix pass the text that report.to_json() returned")


def test_every_form_carries_figures_and_protocol(report: Report) -> None:
    stream = io.StringIO()
    Console(file=stream, width=200).print(report)
    forms = [str(report), report.to_markdown(), report.to_html(), stream.getvalue()]
    for form in forms:
        flat = re.sub(r"\s+", " ", form.replace("&#124;", "|"))
        for text in (
            "1.60x [1.55, 1.66]", "half|small", "1 G (50%)", "400 k (40%)", "0.9877", "3 MiB", "4.0e-07, 25.0% of integers differ",
            "5.0e-06", "0.80", "1.00", "2 threads", "interleaved", "Some CPU", "load average at the start 3.0 (other work was running)",
            "torch 2.11", "5 samples per candidate",
        ):  # fmt: skip
            assert text in flat, text


def test_text_lines_are_not_torn(report: Report) -> None:
    lines = str(report).splitlines()
    assert lines[0] == "Latency of one call, onnxruntime:cpu, fp32, 2 threads"
    assert not any(line.endswith("…") or "… " in line for line in lines)
    assert not re.search(r"\x1b", str(report))


def test_html_needs_nothing_from_outside(report: Report) -> None:
    page = report.to_html()
    assert not re.search(r"https?://|src=|<link", page)
    data = re.search(r"<script type='application/json' id='report'>(.*)</script>", page, re.DOTALL)
    assert data is not None
    assert Report.from_json(data[1].replace("<\\/", "</")) == report


def test_names_cannot_break_the_page(report: Report) -> None:
    broken = dataclasses.replace(report, target="</script><b>", metrics={"dense": {"<i>": 1.0}})
    page = broken.to_html()
    assert "<b>" not in page.replace("<\\/script><b>", "")
    assert page.count("</script>") == 1


def test_questions(report: Report) -> None:
    assert report.baseline == "dense"
    assert report.ratio().ratio == 1.6
    assert report.ratio(batch=8).ratio == 2.0
    assert report.efficiency("half|small") == pytest.approx(0.8)
    assert report.efficiency("dense") is None
    assert "Protocol: target onnxruntime:cpu" in report.protocol_text()


def test_plot(report: Report, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    assert report.plot(tmp_path / "latency.png").stat().st_size > 5000
    assert "<svg" in report.plot(tmp_path / "latency.svg").read_text()
    with pytest.raises(SaveError) as error:
        report.plot(tmp_path / "latency.svg" / "latency.png")
    assert str(error.value).startswith("cannot write the plot: File exists\n  at  ")


def test_plot_without_matplotlib(report: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtra) as error:
        report.plot(tmp_path / "latency.png")
    assert str(error.value) == (
        "report.plot needs the package 'matplotlib', which is not installed\n  fix pip install 'optin-fx[plot]'"
    )  # fmt: skip

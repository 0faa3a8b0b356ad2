"""`Report`: the result of a measurement. It never shows a figure without the protocol that it was taken by."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from optin_fx.errors import LoadError, MissingExtra


@dataclass(frozen=True)
class Latency:
    """Time of one call of one candidate at one batch size.

    Attributes:
        candidate: its name.
        batch: rows per call.
        median_ms, p90_ms, p99_ms: milliseconds per call.
        spread: interquartile range / median.
        rows_per_s: batch / median.
        calls_per_sample: calls behind each sample; more than one where a call is shorter than a millisecond, and then the
            percentiles are those of such means.
        samples_ms: every sample, in the order of the rounds.
        length: size of the dim that was measured at several lengths, such as tokens; None where it was as in the given call.
    """

    candidate: str
    batch: int
    median_ms: float
    p90_ms: float
    p99_ms: float
    spread: float
    rows_per_s: float
    calls_per_sample: int
    samples_ms: tuple[float, ...]
    length: int | None = None


@dataclass(frozen=True)
class Ratio:
    """Speed-up: median of the baseline / median of the candidate, with a 95 % bootstrap confidence interval."""

    baseline: str
    candidate: str
    batch: int
    ratio: float
    low: float
    high: float
    length: int | None = None

    def __str__(self) -> str:
        return f"{self.ratio:.2f}x [{self.low:.2f}, {self.high:.2f}]"


@dataclass(frozen=True)
class Agreement:
    """Difference of a candidate's engine from `against` ("its program", or "reference"); see `lowering.Closeness`."""

    candidate: str
    against: str
    batch: int
    max_abs: float
    max_rel: float
    unequal: float
    length: int | None = None


@dataclass(frozen=True)
class EngineFacts:
    """Facts about one engine: seconds to build, milliseconds of its first run, bytes at the peak (None: not measured)."""

    build_s: float
    first_run_ms: float
    peak_bytes: int | None = None
    info: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Report:
    """Latencies, ratios and agreements of two or more candidates on one target.

    Attributes:
        target: canonical target text.
        protocol: how it was measured.
        environment: where it was measured.
        latencies: one per candidate, batch size and length.
        ratios: one per batch size, length and candidate after the first.
        agreements: engine against its program, and against a reference where one was given.
        engines: build facts per candidate.
        costs: flops, macs, params and bytes per candidate, where the caller gave them.
        metrics: figures of quality per candidate, where the caller gave them.
    """

    target: str
    protocol: Mapping[str, Any]
    environment: Mapping[str, Any]
    latencies: tuple[Latency, ...]
    ratios: tuple[Ratio, ...]
    agreements: tuple[Agreement, ...]
    engines: Mapping[str, EngineFacts]
    costs: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    metrics: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    # -- questions -----------------------------------------------------------------------------------------------

    @property
    def baseline(self) -> str:
        """Name of the candidate that ratios refer to."""
        return self.latencies[0].candidate

    @property
    def candidates(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(item.candidate for item in self.latencies))

    @property
    def batches(self) -> tuple[int, ...]:
        return tuple(dict.fromkeys(item.batch for item in self.latencies))

    @property
    def lengths(self) -> tuple[int | None, ...]:
        return tuple(dict.fromkeys(item.length for item in self.latencies))

    def latency(self, candidate: str, batch: int | None = None, length: int | None = None) -> Latency:
        """The latency of a candidate, at the first batch size and length unless they are given."""
        return next(
            item for item in self.latencies if item.candidate == candidate and batch in (None, item.batch) and length in (None, item.length)
        )

    def ratio(self, candidate: str | None = None, batch: int | None = None, length: int | None = None) -> Ratio:
        """The speed-up of a candidate over the baseline; by default the first candidate at the first batch size and length."""
        return next(
            item
            for item in self.ratios
            if candidate in (None, item.candidate) and batch in (None, item.batch) and length in (None, item.length)
        )

    def efficiency(self, candidate: str, batch: int | None = None) -> float | None:
        """Speed-up / ratio of FLOPs: 1 where every FLOP that was saved is saved time.

        None without costs, and for a grid of lengths: costs are counted at one length, and attention's share grows with it.
        """
        costs = [self.costs.get(name, {}).get("flops") for name in (self.baseline, candidate)]
        if candidate == self.baseline or not costs[0] or not costs[1] or self.lengths != (None,):
            return None
        return self.ratio(candidate, batch).ratio / (costs[0] / costs[1])

    def protocol_text(self) -> str:
        """The protocol and the machine in three sentences."""
        from optin_fx.report_text import protocol_text

        return protocol_text(self)

    # -- forms ---------------------------------------------------------------------------------------------------

    def to_json(self) -> str:
        """Everything, samples included."""
        return json.dumps({"format": 1, **asdict(self)}, indent=1)

    @staticmethod
    def from_json(text: str) -> Report:
        """Read `to_json`'s text.

        Raises:
            LoadError: it is something else.
        """
        try:
            data = json.loads(text)
            if data.pop("format") != 1:
                raise ValueError("unknown format")
            return Report(
                target=data["target"],
                protocol=data["protocol"],
                environment=data["environment"],
                latencies=tuple(Latency(**{**item, "samples_ms": tuple(item["samples_ms"])}) for item in data["latencies"]),
                ratios=tuple(Ratio(**item) for item in data["ratios"]),
                agreements=tuple(Agreement(**item) for item in data["agreements"]),
                engines={name: EngineFacts(**item) for name, item in data["engines"].items()},
                costs=data["costs"],
                metrics=data["metrics"],
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise LoadError(f"not a report: {error}", fix="pass the text that report.to_json() returned") from error

    def __str__(self) -> str:
        from optin_fx.report_text import to_text

        return to_text(self)

    def __rich__(self) -> Any:
        from optin_fx.report_text import to_rich

        return to_rich(self)

    def to_markdown(self) -> str:
        """A table, the protocol and the machine, in Markdown."""
        from optin_fx.report_text import to_markdown

        return to_markdown(self)

    def to_html(self) -> str:
        """One self-contained page."""
        from optin_fx.report_text import to_html

        return to_html(self)

    def plot(self, path: str | Path) -> Path:
        """Draw latency by batch size, and speed-up / FLOPs ratio where costs are known; the suffix chooses the format.

        Raises:
            MissingExtra: matplotlib is not installed.
        """
        import importlib.util

        if importlib.util.find_spec("matplotlib") is None:
            raise MissingExtra("matplotlib", "plot", needed_for="report.plot")
        from optin_fx.report_plot import plot

        return plot(self, Path(path))

"""Cells of the latency table: one measurement each (model, engine, batch), kept as a file, so that an interrupted run goes on."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import optin_fx as ofx
from optin_fx.errors import LoadError
from optin_fx.files import write_whole
from optin_fx.timing import Repeats

DENSE = "dense"


@dataclass(frozen=True)
class Cell:
    """What one measurement is about; its file is named after it.

    Attributes:
        model, target: names in `models.MODELS` and of `ofx.lower`.
        batch: rows per call.
        shares: percents of the dense FLOPs that the smaller programs may keep.
        align: widths are multiples of this, where a group has at least four times as many units.
        threads: CPU threads.
    """

    model: str
    target: str
    batch: int
    shares: tuple[int, ...]
    align: int
    threads: int

    def file(self, folder: Path) -> Path:
        """Where the cell is kept."""
        name = f"{self.model}-{self.target}-b{self.batch}-t{self.threads}".replace(":", "_").replace("/", "_")
        return folder / f"{name}.json"

    def read(self, folder: Path) -> ofx.Report | None:
        """The kept report, if there is one that was measured with these settings."""
        try:
            found = json.loads(self.file(folder).read_text())
            return ofx.Report.from_json(json.dumps(found["report"])) if found["cell"] == json.loads(json.dumps(asdict(self))) else None
        except (OSError, ValueError, KeyError, TypeError, LoadError):
            return None

    def write(self, folder: Path, report: ofx.Report) -> None:
        """Keep a report."""
        write_whole(self.file(folder), json.dumps({"cell": asdict(self), "report": json.loads(report.to_json())}))


@dataclass(frozen=True)
class Candidates:
    """The dense program, the smaller ones, and for each of these the dense program with its units masked."""

    programs: dict[str, ofx.Program]
    masked: dict[str, ofx.Program]
    costs: dict[str, ofx.Cost]

    @staticmethod
    def of(dense: ofx.Program, shares: tuple[int, ...], align: int) -> Candidates:
        """Widths chosen by weight magnitude: with random weights, any choice is as good, and only shapes matter here."""
        scores = ofx.score(dense, "magnitude")
        plans = {f"{share} %": ofx.search(dense, scores, budget=f"flops <= {share}%", align=align) for share in shares}
        programs = {DENSE: dense} | {name: ofx.rewrite(dense, plan) for name, plan in plans.items()}
        masked = {name: ofx.mask(dense, plan) for name, plan in plans.items()}
        return Candidates(programs, masked, {name: ofx.cost(program) for name, program in programs.items()})


def measure(cell: Cell, candidates: Candidates, seconds: float) -> ofx.Report:
    """Take the measurement of a cell: all candidates interleaved in this process, each compared with its masked program."""
    return ofx.measure(
        candidates.programs,
        target=cell.target,
        batches=(cell.batch,),
        threads=cell.threads,
        costs=candidates.costs,
        reference=candidates.masked,
        repeats=Repeats(least=10, seconds=seconds),
    )

"""What the pages show: figures over calibration seeds. They are kept beside the pages, so that another machine can add to them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import mean, median

from optin_fx.files import write_whole
from optin_fx.pipeline import Pass

from .cells import Cell, Result, fingerprint
from .methods import Settings, settings, still_mean

FIGURES = "figures.json"
"""The archive's name, beside the pages."""


@dataclass(frozen=True)
class Figures:
    """Of one method at one budget.

    Attributes:
        seeds: how many calibration draws.
        means: by metric. spreads: half the range over the draws; zero for one.
        seconds: median by stage; empty where it was not kept.
        each: the metrics of each draw, by its seed, so that others can be added; empty where they were not kept.
    """

    seeds: int
    means: Mapping[str, float]
    spreads: Mapping[str, float]
    seconds: Mapping[str, float] = field(default_factory=dict)
    each: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    @classmethod
    def of(cls, results: Sequence[Result], older: Figures | None = None) -> Figures:
        """Of the cells of some seeds, one at least, and of the seeds that older figures have beside them."""
        each = dict(older.each if older else {}) | {str(result.cell.seed): dict(result.metrics) for result in results}
        metrics = {name: [values[name] for values in each.values() if name in values] for name in results[0].metrics}
        return cls(
            len(each),
            {name: mean(values) for name, values in metrics.items()},
            {name: (max(values) - min(values)) / 2 for name, values in metrics.items()},
            {stage: round(median(result.seconds[stage] for result in results), 2) for stage in results[0].seconds},
            each,
        )


@dataclass
class Archive:
    """Figures of earlier runs in a file of the repository; cells are kept on the machine that made them alone.

    Attributes:
        entries: by the key of the cell that the first seed has: that cell, the settings of its passes, and the figures.
    """

    entries: dict[str, tuple[Cell, Settings, Figures]] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> Archive:
        """The archive in a file; an empty one if there is none."""
        facts = json.loads(path.read_text()) if path.exists() else {"settings": {}, "figures": []}
        found = ((Cell(**one["cell"]), facts["settings"][one["settings"]], Figures(**one["figures"])) for one in facts["figures"])
        return cls({cell.key: (cell, own, figures) for cell, own, figures in found})

    def write(self, path: Path) -> None:
        """Write it, settings that many entries share once."""
        known = {fingerprint(own): own for _, own, _ in self.entries.values()}
        settings_lines = [f" {json.dumps(key)}: {json.dumps(known[key])}" for key in sorted(known)]
        lines = [
            " " + json.dumps({"cell": asdict(cell), "settings": fingerprint(own), "figures": asdict(figures)})
            for cell, own, figures in self._sorted()
        ]
        text = '{"settings": {\n' + ",\n".join(settings_lines) + '\n},\n"figures": [\n' + ",\n".join(lines) + "\n]}\n"
        write_whole(path, text)

    def find(self, cell: Cell, passes: Iterable[Pass]) -> Figures | None:
        """Figures of passes with today's options, by the cell of the first seed."""
        found = self.entries.get(cell.key)
        return found[2] if found is not None and still_mean(found[1], passes) else None

    def put(self, cell: Cell, passes: Iterable[Pass], figures: Figures) -> None:
        """Keep figures in place of what is there."""
        self.entries[cell.key] = (cell, settings(passes), figures)

    def taken(self, cell: Cell, passes: Sequence[Pass], results: Sequence[Result]) -> Figures | None:
        """The figures of these results and of the seeds that are there beside them, which are kept; None if there are neither.

        Figures whose single draws are not known stay until there are as many draws.
        """
        kept = self.find(cell, passes)
        if results:
            made = Figures.of(results, kept)
            if kept is None or made.seeds >= kept.seeds:
                self.put(cell, passes, made)
                return made
        return kept

    def cells(self) -> list[Cell]:
        """The cells, of the first seeds, of which there are figures."""
        return [cell for cell, _, _ in self.entries.values()]

    def _sorted(self) -> list[tuple[Cell, Settings, Figures]]:
        return sorted(self.entries.values(), key=lambda one: (one[0].task, one[0].samples, one[0].pipeline, -one[0].budget))

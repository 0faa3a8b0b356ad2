"""A task laid out for many methods: traced once, scored once per criterion, everything that a cell needs at hand."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from tasks import Batch as Inputs
from tasks import Labels, Task

import optin_fx as ofx
from optin_fx.data import Batch
from optin_fx.pipeline import Pass, Pipeline, ScorePass, State

from .cells import Cell, Result, Store, checkpoint
from .figures import Archive, Figures
from .methods import Method, settings, still_mean


@dataclass
class Workbench:
    """A task with one draw of calibration data.

    Attributes:
        task: what to measure on.
        seed, samples: of the calibration draw.
        store: where cells and scores are kept.
    """

    task: Task
    seed: int
    samples: int
    store: Store
    program: ofx.Program | None = None
    clock: dict[str, float] = field(default_factory=dict)

    @cached_property
    def dense(self) -> ofx.Program:
        """The traced model; one that another draw of the same task has traced may be given as `program`."""
        if self.program is not None:
            return self.program
        args, kwargs = self.task.example()
        return ofx.trace(self.task.model(), args, kwargs, self.task.dynamic_shapes())

    @cached_property
    def batches(self) -> list[Batch]:
        """Calibration batches with their labels, where the task has any; a criterion that needs none never looks."""
        inputs = self.task.calibration(self.samples, self.seed)
        labels = self.task.labels(self.samples, self.seed)
        return [_batch(one, labels[i] if labels else None) for i, one in enumerate(inputs)]

    def passes(self, method: Method, budget: float) -> tuple[Pass, ...]:
        """The passes of a method at a budget, in percent of the dense FLOPs."""
        return method.passes(f"flops <= {budget:g}%", self.seed, self.task.name)

    def cell(self, method: Method, budget: float) -> Cell:
        """What identifies the result of a method at a budget."""
        return self._cell(" | ".join(map(str, self.passes(method, budget))), float(budget))

    def find(self, method: Method, budget: float) -> Result | None:
        """The cell of a method at a budget, if it was computed with the options that the method has today."""
        found = self.store.read(self.cell(method, budget))
        return found if found is not None and still_mean(found.facts["settings"], self.passes(method, budget)) else None

    def run(self, method: Method, budget: float) -> Result:
        """The cell of a method at a budget: computed now, or read if it was before.

        Raises:
            OptinError: the method cannot meet the budget, or not run on this task.
        """
        found = self.find(method, budget)
        if found is None:
            found = self._compute(method, budget)
            self.store.write(found)
        return found

    def _compute(self, method: Method, budget: float) -> Result:
        self.clock = {}
        steps = list(self.passes(method, budget))
        facts: dict[str, Any] = {"settings": settings(steps), "commit": commit()}
        state = State(self.dense, self.batches)
        if isinstance(steps[0], ScorePass):
            state = replace(state, scores=self.scores(steps.pop(0)))
        state = Pipeline(tuple(steps), (self._log,)).run(state)
        assert state.small is not None
        small = state.small
        with self.timed("evaluate"):
            metrics = self.task.evaluate(small)
        before, after = ofx.cost(self.dense), ofx.cost(small)
        shares = {name: getattr(after, name) / getattr(before, name) for name in ("flops", "params")}
        if state.plan is not None:
            facts["kept"] = {name: len(units) for name, units in state.plan.kept.items()}
            facts |= {key: state.plan.provenance[key] for key in ("tried", "tries", "coverage") if key in state.plan.provenance}
        return Result(self.cell(method, budget), metrics, shares, {k: round(v, 2) for k, v in self.clock.items()}, facts)

    def scores(self, step: Pass) -> ofx.Scores:
        """The scores of a pass: the same for all budgets and all that follows, so made once and kept."""
        path = self.store.scores(self._cell(str(settings([step])), 100.0).key)
        if not path.exists():
            start = time.perf_counter()
            made = Pipeline((step,)).run(State(self.dense, self.batches)).scores
            assert made is not None
            seconds = time.perf_counter() - start
            replace(made, provenance={**made.provenance, "seconds": seconds}).save(path)
        scores = ofx.Scores.load(path)
        self.clock["score"] = float(scores.provenance["seconds"])
        return scores

    def _cell(self, text: str, budget: float) -> Cell:
        return Cell(self.task.name, checkpoint(self.task.name), text, budget, self.seed, self.samples, self.task.revision)

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Adds the wall time of what it surrounds to a stage."""
        start = time.perf_counter()
        yield
        self.clock[stage] = self.clock.get(stage, 0.0) + time.perf_counter() - start

    def _log(self, step: Pass, _: State, seconds: float) -> None:
        stage = "rewrite" if "small" in step.writes else "search"
        self.clock[stage] = self.clock.get(stage, 0.0) + seconds


def figures_of(method: Method, budget: float, benches: Sequence[Workbench], archive: Archive) -> Figures | None:
    """Figures of a method over the seeds of some benches of one task, or older ones of more seeds; None if there are none."""
    results = [found for bench in benches if (found := bench.find(method, budget)) is not None]
    first = replace(benches[0], seed=0)
    return archive.taken(first.cell(method, budget), first.passes(method, budget), results)


def _batch(inputs: Inputs, labels: Labels | None) -> Batch:
    return Batch((), inputs, labels) if isinstance(inputs, dict) else Batch(inputs, {}, labels)


def commit() -> str:
    """The repository's commit, for the record; "unknown" outside one."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"

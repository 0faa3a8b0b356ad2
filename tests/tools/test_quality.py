"""The quality bench on a tiny task: cells are computed once, read again, and put into tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import peers
import pytest
import torch
from quality.cells import Cell, Result, Store
from quality.figures import Archive, Figures
from quality.lines import METHODS
from quality.methods import Method, available, settings, still_mean
from quality.page import Line, behind, shown, task_table
from quality.sweeps import SWEEPS
from quality.workbench import Workbench, figures_of
from tasks import Batch, Labels, Metrics, Run, Task
from tasks.task import Facts
from torch import Tensor, nn

import optin_fx as ofx
from optin_fx.data import batches_of
from optin_fx.errors import BudgetError
from optin_fx.pipeline import State, find_pass

PRUNE = Method("magnitude", "score-magnitude | search-rank | rewrite-slice")
REFIT = Method("fisher + refit", "score-fisher | search-rank | rewrite-reconstruct")


@dataclass(frozen=True)
class Lines(Task):
    """Which side of some lines is a point on? Counts its evaluations."""

    name: ClassVar[str] = "lines"
    metric: ClassVar[str] = "accuracy"
    evaluations: ClassVar[list[Metrics]] = []

    def model(self) -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4)).eval()

    def calibration(self, n: int, seed: int = 0, batch: int = 32) -> list[Batch]:
        return [(points,) for points in torch.randn(n, 8, generator=torch.Generator().manual_seed(seed)).split(batch)]

    def labels(self, n: int, seed: int = 0, batch: int = 32) -> list[Labels] | None:
        with torch.no_grad():
            return [self.model()(*points).argmax(-1) for points in self.calibration(n, seed, batch)]

    def loss(self, output: Any, labels: Labels) -> Tensor:
        return nn.functional.cross_entropy(output, labels)

    def evaluate(self, run: Run, batch: int = 50) -> Metrics:
        (points,) = self.calibration(200, seed=99, batch=200)
        with torch.no_grad():
            agree = (run(*points).argmax(-1) == self.model()(*points).argmax(-1)).float().mean().item()
        self.evaluations.append({"accuracy": agree})
        return {"accuracy": agree}

    def train(self) -> Facts:
        raise AssertionError("nothing to train")

    def dynamic_shapes(self) -> Any:
        return ({0: torch.export.Dim("batch", max=4096)},)


@pytest.fixture
def bench(empty_cache: Path) -> Workbench:
    Lines.evaluations.clear()
    return Workbench(Lines(), seed=0, samples=128, store=Store.default())


def test_a_cell_is_computed_once(bench: Workbench) -> None:
    first = bench.run(PRUNE, 50)
    again = replace(bench).run(PRUNE, 50)
    assert again == first
    assert len(Lines.evaluations) == 1
    assert 0.4 < first.shares["flops"] <= 0.5
    assert first.seconds.keys() == {"score", "search", "rewrite", "evaluate"}


def test_scores_are_shared_by_budgets_and_kept(bench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.run(REFIT, 50)

    def refuse(*_: Any) -> None:
        raise AssertionError("scored twice")

    monkeypatch.setattr("optin_fx.passes.ScoreFisher.score", refuse)
    milder = replace(bench).run(REFIT, 80)
    assert 0.7 < milder.shares["flops"] <= 0.8
    assert milder.metrics["accuracy"] >= 0.5
    with pytest.raises(AssertionError, match="scored twice"):  # another draw of calibration data has scores of its own
        replace(bench, seed=1).run(REFIT, 80)


def test_an_unreachable_budget_is_refused_and_not_kept(bench: Workbench) -> None:
    with pytest.raises(BudgetError):
        bench.run(PRUNE, 0.1)
    assert list(bench.store) == []


def test_a_changed_default_makes_a_cell_stale(bench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    """It must not give an old cell a new meaning, though the text form of the pipeline is the same."""
    bench.run(REFIT, 50)
    assert bench.find(REFIT, 50) is not None
    assert bench.find(REFIT, 40) is None
    assert replace(bench, samples=64).find(REFIT, 50) is None
    found = bench.store.read(bench.cell(REFIT, 50))
    assert found is not None
    stored = found.facts["settings"]
    passes = bench.passes(REFIT, 50)
    assert still_mean(stored, passes)
    assert still_mean([{k: v for k, v in one.items() if k != "rows"} for one in stored], passes)  # an option that came later
    assert not still_mean([{**one, "min_keep": "0.5"} if one["pass"] == "search-rank" else one for one in stored], passes)


def test_uniform_width(bench: Workbench) -> None:
    kept = bench.run(Method("uniform", "score-magnitude | search-uniform | rewrite-slice"), 50).facts["kept"]
    assert len(set(kept.values())) == 1
    assert 16 <= next(iter(kept.values())) < 32


def test_k_prune_meets_the_budget(bench: Workbench) -> None:
    result = bench.run(Method("K-prune", "k-prune"), 60)
    assert 0.4 < result.shares["flops"] <= 0.6
    assert result.metrics["accuracy"] > 0.6


def test_k_prune_takes_graphs_with_single_numbers() -> None:
    """As a BERT's mask brings with it."""

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.scale = nn.Linear(8, 32), nn.Linear(32, 4), nn.Buffer(torch.tensor(0.5))

        def forward(self, x: Tensor) -> Tensor:
            return self.second(torch.relu(self.first(x)) * self.scale)

    torch.manual_seed(0)
    program = ofx.trace(Scaled().eval(), (torch.randn(16, 8),))
    found = peers.KPrune(budget="flops <= 50%").apply(State(program, batches_of(program, [torch.randn(16, 8)] * 4, needed_for="the test")))
    assert found.small is not None
    assert ofx.cost(found.small).flops <= 0.5 * ofx.cost(program).flops


def test_torch_pruning_refuses_without_a_task() -> None:
    assert str(peers.TorchPruning(importance="taylor")) == "torch-pruning{importance=taylor}"
    with pytest.raises(ValueError, match="importance is one of"):
        peers.TorchPruning(importance="luck")


def test_lines_and_sweeps_name_passes_that_exist() -> None:
    assert available(METHODS)[1] == {}
    for sweep in SWEEPS:
        assert available(sweep.methods)[1] == {}, sweep.title


def test_missing_passes_are_named() -> None:
    found, missing = available((PRUNE, Method("dream", "score-dreams | search-rank")))
    assert found == (PRUNE,)
    assert missing == {"dream": "there is no pass called 'score-dreams'"}


def test_settings_show_defaults() -> None:
    (shown,) = settings([find_pass("score-random{seed=3}")])
    assert shown["pass"] == "score-random"
    assert shown["seed"] == "3"
    assert settings([find_pass("score-magnitude")])[0]["p"] == "2"


# -- tables --------------------------------------------------------------------------------------------------------------


def figures(*values: float, metric: str = "accuracy") -> Figures:
    """One value for each seed."""
    return Figures.of([Result(Cell("reviews", "0", "p", 50, seed, 1), {metric: v}, {}, {}, {}) for seed, v in enumerate(values)])


def line(name: str, *values: Sequence[float], peer: bool = False) -> Line:
    """Budgets 50, 40, … with one value for each seed."""
    return Line(name, peer, {50.0 - 10 * i: figures(*seeds) for i, seeds in enumerate(values)})


def test_mean_and_half_range() -> None:
    assert shown(figures(0.8, 0.9), "accuracy") == "85.00 ± 5.00"
    assert shown(figures(0.8123, metric="cosine"), "cosine") == "0.8123"
    assert shown(None, "accuracy") == "–"


def test_table_marks_the_best_and_the_peers() -> None:
    text = task_table([line("ours", [0.8], [0.7]), line("theirs", [0.9], peer=True)], (50, 40), "accuracy")
    assert text.splitlines()[2].split() == ["|", "ours", "|", "80.00", "|", "**70.00**", "|"]
    assert text.splitlines()[3].split() == ["|", "_theirs_", "|", "**90.00**", "|", "–", "|"]


def test_behind_counts_the_spread() -> None:
    ours, close, far = line("ours", [0.80, 0.84]), line("close", [0.83], peer=True), line("far", [0.86], peer=True)
    assert behind([ours, close], "ours", [50], "accuracy") == []
    assert behind([ours, close, far], "ours", [50], "accuracy") == ["at 50 %, far has 86.00, ours 82.00 ± 2.00"]
    assert behind([ours, line("own variant", [0.99])], "ours", [50], "accuracy") == []


# -- figures that another machine made ------------------------------------------------------------------------------------


def test_figures_outlive_the_cells(bench: Workbench, tmp_path: Path) -> None:
    benches = [bench, replace(bench, seed=1)]
    archive = Archive()
    assert figures_of(REFIT, 50, benches, archive) is None
    values = [one.run(REFIT, 50).metrics["accuracy"] for one in benches]
    found = figures_of(REFIT, 50, benches, archive)
    assert found is not None
    assert found.seeds == 2
    assert found.means["accuracy"] == pytest.approx(sum(values) / 2)
    archive.write(tmp_path / "figures.json")
    elsewhere = [replace(one, store=Store(tmp_path / "empty")) for one in benches]
    assert figures_of(REFIT, 50, elsewhere, Archive.read(tmp_path / "figures.json")) == found
    third = replace(elsewhere[0], seed=2)
    values.append(third.run(REFIT, 50).metrics["accuracy"])
    more = figures_of(REFIT, 50, [*elsewhere, third], Archive.read(tmp_path / "figures.json"))
    assert more is not None
    assert more.seeds == 3
    assert more.means["accuracy"] == pytest.approx(sum(values) / 3)
    assert figures_of(REFIT, 40, elsewhere, Archive.read(tmp_path / "figures.json")) is None


def test_more_seeds_win(bench: Workbench) -> None:
    benches = [bench, replace(bench, seed=1)]
    archive, first = Archive(), bench.cell(REFIT, 50)
    bench.run(REFIT, 50)
    older = Figures(3, {"accuracy": 0.5}, {"accuracy": 0.1})
    archive.put(first, bench.passes(REFIT, 50), older)
    assert figures_of(REFIT, 50, benches, archive) == older
    archive.put(first, bench.passes(REFIT, 50), replace(older, seeds=1))
    now = figures_of(REFIT, 50, benches, archive)
    assert now is not None
    assert now.seeds == 1
    assert now.means["accuracy"] > 0.5


def test_figures_of_other_options_are_not_shown(bench: Workbench) -> None:
    archive = Archive()
    cell, passes = bench.cell(REFIT, 50), bench.passes(REFIT, 50)
    archive.put(cell, passes, Figures(3, {"accuracy": 0.5}, {"accuracy": 0.1}))
    assert archive.find(cell, passes) is not None
    entry = archive.entries[cell.key]
    changed = [{**one, "min_keep": "0.5"} if one["pass"] == "search-rank" else one for one in entry[1]]
    archive.entries[cell.key] = (cell, changed, entry[2])
    assert archive.find(cell, passes) is None

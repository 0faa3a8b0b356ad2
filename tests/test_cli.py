"""The command line: every subcommand on a small model, JSON that parses, errors in one form, exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import optin_fx as ofx
from optin_fx.cli import look, score
from optin_fx.cli.application import run
from optin_fx.cli.data import RandomDataWarning, random_batches, read_data
from optin_fx.cli.output import plain
from optin_fx.errors import DataError

COMMANDS = ("group", "score", "search", "rewrite", "verify", "prune", "measure", "lower", "cost", "passes")
MODULE = """
import torch
from torch import nn

def make():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 40), nn.GELU(), nn.Linear(40, 32), nn.GELU(), nn.Linear(32, 5))
    return model, (torch.zeros(2, 12),)

def batches():
    torch.manual_seed(1)
    return [torch.randn(16, 12) for _ in range(4)]

def empty():
    return []

def number():
    return 7
"""
FORMS = "give package.module:factory, a .pt, .safetensors or .npz file, or random"
NET, DATA = "cli_models_for_test:make", "cli_models_for_test:batches"


class Said(NamedTuple):
    code: int
    out: str
    err: str

    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Iterator[Callable[..., Said]]:
    """Runs a command in a folder of its own that holds a user's module."""
    (tmp_path / "cli_models_for_test.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])

    def call(*arguments: str) -> Said:
        capfd.readouterr()
        code = run(arguments)
        return Said(code, *capfd.readouterr())

    yield call
    sys.modules.pop("cli_models_for_test", None)


@pytest.fixture
def program() -> ofx.Program:
    return ofx.trace(torch.nn.Linear(3, 2), (torch.zeros(2, 3),))


# -- each command ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS)
def test_help_says_what_it_does_and_has_json(cli: Callable[..., Said], command: str) -> None:
    said = cli(command, "--help")
    assert said.code == 0
    assert "--json" in said.out
    assert command in said.out


def test_group(cli: Callable[..., Said]) -> None:
    assert "40" in cli("group", NET).out
    said = cli("group", NET, "--json")
    free = [one for one in said.json() if one["pinned"] is None]
    assert sorted(one["extent"] for one in free) == [32, 40]
    assert all(set(one) == {"name", "kind", "extent", "pinned", "members"} for one in said.json())


def test_cost(cli: Callable[..., Said]) -> None:
    facts = cli("cost", NET, "--json").json()
    assert facts["macs"] == 2 * (12 * 40 + 40 * 32 + 32 * 5)
    assert facts["flops"] >= 2 * facts["macs"]
    assert facts["params"] == 12 * 40 + 40 + 40 * 32 + 32 + 32 * 5 + 5
    assert f"{facts['params']:,}" in cli("cost", NET).out


def test_scores_are_printed_compared_and_noted_on_the_graph(cli: Callable[..., Said], tmp_path: Path) -> None:
    assert cli("score", NET, "--score", "magnitude", "--out", "a.safetensors").code == 0
    assert cli("score", NET, "--score", "wanda", "--data", DATA, "--out", "b.safetensors", "--annotate", "noted.pt2").code == 0
    assert "score-magnitude for program" in cli("score", "--print", "a.safetensors").out
    noted = cli("score", "--print", "noted.pt2")
    assert "%linear_1" in noted.out
    assert "by score-wanda" in noted.out
    assert set(cli("score", "--print", "noted.pt2", "--json").json()) == {"linear_1", "linear_2"}
    same = cli("score", "--compare", "a.safetensors", "a.safetensors", "--json").json()
    assert same["overall"]["spearman"] == pytest.approx(1.0)
    other = cli("score", "--compare", "a.safetensors", "b.safetensors", "--plot", "ab.png")
    assert "all together" in other.out
    assert (tmp_path / "ab.png").read_bytes()[:4] == b"\x89PNG"
    assert cli("score", "--compare", "a.safetensors", "none.safetensors").code == 2


def test_layers_are_listed(cli: Callable[..., Said]) -> None:
    said = cli("score", NET, "--show-layers")
    assert [line.split()[0] for line in said.out.splitlines()] == ["layer", "linear", "linear_1", "linear_2"]
    assert [fact["groups_before"] for fact in cli("score", NET, "--show-layers", "--json").json()] == [0, 1, 2]


def test_score_wants_a_model_and_enough_data(cli: Callable[..., Said]) -> None:
    assert "give a MODEL, or --compare A B, or --print FILE" in cli("score").err
    said = cli("score", NET, "--score", "wanda", "--data", DATA, "--samples", "65")
    assert said.code == 2
    assert "the calibration data runs out after 64 samples" in said.err


def test_score_to_a_file_and_search_from_it(cli: Callable[..., Said]) -> None:
    said = cli("score", NET, "--score", "magnitude", "--data", DATA, "--out", "new/scores.safetensors", "--json")
    assert said.code == 0, said.err
    assert sorted(len(values) for values in said.json().values()) == [32, 40]
    found = cli("search", NET, "--scores", "new/scores.safetensors", "--json").json()
    again = cli("search", NET, "--score", "magnitude", "--data", DATA, "--json").json()
    assert found["kept"] == again["kept"]


def test_search_rearranges(cli: Callable[..., Said]) -> None:
    said = cli("score", NET, "--score", "fisher{keep_samples=True}", "--data", DATA, "--out", "fisher.safetensors", "--json")
    assert said.code == 0, said.err
    found = cli("search", NET, "--scores", "fisher.safetensors", "--search", "kwon", "--rearrange", "--json").json()
    again = cli("search", NET, "--score", "fisher", "--data", DATA, "--search", "kwon", "--rearrange", "--json").json()
    assert found["kept"] == again["kept"]
    assert "rearranged" in found["provenance"]
    said = cli("search", "nowhere:model", "--score", "magnitude", "--rearrange")  # refused before the model is read
    assert said.code == 2
    assert "keep_samples" in said.err


def test_search_rewrite_verify_measure_lower(cli: Callable[..., Said], tmp_path: Path) -> None:
    said = cli("search", NET, "--score", "magnitude", "--data", DATA, "--budget", "flops <= 50%", "--out", "new/plan.json", "--json")
    assert said.code == 0, said.err
    assert said.json() == json.loads((tmp_path / "new/plan.json").read_text())

    said = cli("rewrite", NET, "--plan", "new/plan.json", "--out", "small.pt2", "--json")
    assert said.code == 0, said.err
    assert said.json()["flops"]["after"] <= 0.5 * said.json()["flops"]["before"]
    assert ofx.load(tmp_path / "small.pt2")(torch.zeros(3, 12)).shape == (3, 5)

    said = cli("verify", NET, "--plan", "new/plan.json", "--json")
    assert said.code == 0, said.err

    said = cli("measure", NET, "small.pt2", "--target", "eager:cpu", "--json")
    assert said.code == 0, said.err
    assert said.json()

    pytest.importorskip("onnxruntime")
    said = cli("lower", "small.pt2", "--target", "onnxruntime:cpu", "--out", "model.onnx", "--json")
    assert said.code == 0, said.err
    assert (tmp_path / "model.onnx").exists()


def test_single_steps_make_what_prune_makes(cli: Callable[..., Said], tmp_path: Path) -> None:
    assert cli("prune", NET, "--data", DATA, "--budget", "flops <= 50%", "--out", "whole").code == 0
    assert cli("score", NET, "--data", DATA, "--out", "s.safetensors").code == 0
    search = ("search", NET, "--scores", "s.safetensors", "--budget", "flops <= 50%", "--search", "trial")
    assert "search-trial needs calibration data" in cli(*search).err
    said = cli(*search, "--data", DATA, "--out", "plan.json")
    assert said.code == 0, said.err
    said = cli("rewrite", NET, "--plan", "plan.json", "--data", DATA, "--out", "small.pt2")
    assert said.code == 0, said.err
    assert "layers refitted" in said.out
    x = torch.randn(4, 12)
    with torch.no_grad():
        assert torch.equal(ofx.load(tmp_path / "small.pt2")(x), ofx.load(tmp_path / "whole/pruned.pt2")(x))
    assert cli("rewrite", NET, "--plan", "plan.json", "--data", DATA, "--compensate", "none", "--json").json()["refit"] == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("search", "none.such:model", "--search", "best"), "there is no pass called 'best'"),
        (("search", "none.such:model", "--budget", "half"), "cannot read the budget"),
        (("rewrite", "none.such:model", "--plan", "plan.json", "--compensate", "best"), "there is no pass called 'best'"),
    ],
)
def test_bad_words_are_refused_before_the_model_is_read(
    cli: Callable[..., Said], tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    (tmp_path / "plan.json").write_text(ofx.Plan({}, {}, "none").to_json())
    said = cli(*arguments)
    assert said.code == 2
    assert message in said.err


def test_prune_writes_a_folder(cli: Callable[..., Said], tmp_path: Path) -> None:
    said = cli("prune", NET, "--data", DATA, "--budget", "flops <= 60%", "--out", "made/here")
    assert said.code == 0, said.err
    folder = tmp_path / "made/here"
    assert {"pruned.pt2", "plan.json", "report.md"} <= {path.name for path in folder.iterdir()}
    small, dense = ofx.load(folder / "pruned.pt2"), ofx.trace(*sys.modules["cli_models_for_test"].make())
    assert ofx.cost(small).flops <= 0.6 * ofx.cost(dense).flops
    assert ofx.Plan.from_json((folder / "plan.json").read_text())


def test_prune_to_several_budgets(cli: Callable[..., Said], tmp_path: Path) -> None:
    said = cli("prune", NET, "--data", DATA, "--budget", "flops <= 80,60%", "--search", "knapsack", "--out", "made/family", "--json")
    facts = json.loads(said.out)
    folder = tmp_path / "made" / "family"
    assert {path.name for path in folder.iterdir()} == {"flops-80pct", "flops-60pct", "family.md", "family.svg"}
    flops = [member["cost"]["macs"] / member["dense"]["macs"] for member in facts["members"]]
    assert flops[1] <= 0.6 < flops[0] <= 0.8
    assert facts["members"][0]["change"] < facts["members"][1]["change"]
    assert ofx.cost(ofx.load(folder / "flops-60pct" / "pruned.pt2")).macs == facts["members"][1]["cost"]["macs"]


def test_prune_json(cli: Callable[..., Said]) -> None:
    said = cli("prune", NET, "--data", DATA, "--json")
    assert said.code == 0, said.err
    assert set(said.json()) == {"folder", "plan", "report"}


def test_passes(cli: Callable[..., Said]) -> None:
    said = cli("passes", "--json")
    assert said.code == 0
    assert {"score-magnitude", "score-random", "score-fisher", "score-trajectory-sketch"} <= set(said.json())
    assert all(said.json().values()), "a pass without a docstring"


# -- refusals ----------------------------------------------------------------------------------------------------------


def test_errors_have_one_form_on_stderr(cli: Callable[..., Said]) -> None:
    said = cli("group", "missing.pt2")
    assert said == Said(2, "", "error: no such file\n  at  missing.pt2\n  fix check the path; programs end in .pt2\n")


def test_errors_as_json(cli: Callable[..., Said]) -> None:
    said = cli("group", "missing.pt2", "--json")
    assert said.code == 2
    assert said.json() == {
        "error": {"kind": "LoadError", "what": "no such file", "at": "missing.pt2", "fix": "check the path; programs end in .pt2"}
    }


def test_wrong_usage(cli: Callable[..., Said]) -> None:
    assert cli("prun", NET).code == 2
    assert cli("prune").code == 2
    assert cli("prune", NET, "--bugdet", "x").code == 2


@pytest.mark.parametrize(
    ("command", "place"),
    [("prune", "a_file/folder"), ("search", "a_file/plan.json"), ("score", "a_file/s.safetensors"), ("lower", "a_file/model.onnx")],
)
def test_an_unwritable_place_is_refused_before_any_work(
    cli: Callable[..., Said], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, place: str
) -> None:
    (tmp_path / "a_file").write_text("in the way")
    monkeypatch.setattr(score.ofx, "trace", lambda *_, **__: pytest.fail("work was done"))
    said = cli(command, NET, "--out", place)
    assert said.code == 2
    folder = place if command == "prune" else "a_file"
    reason = "Not a directory" if command == "prune" else "File exists"
    assert said.err == (
        f"error: cannot write there: {reason}\n  at  {folder}\n  so  nothing was done\n"
        "  fix choose with --out a folder that you may write to\n"
    )


def test_a_folder_where_a_file_is_wanted(cli: Callable[..., Said], tmp_path: Path) -> None:
    said = cli("lower", NET, "--out", str(tmp_path))
    assert said.code == 2
    assert said.err == f"error: this is a folder\n  at  {tmp_path}\n  so  nothing was done\n  fix give the path of a file with --out\n"


def test_a_missing_plan(cli: Callable[..., Said]) -> None:
    said = cli("verify", NET, "--plan", "plan.json")
    first = "error: cannot read the plan: No such file or directory\n  at  plan.json\n"
    assert said == Said(2, "", first + "  fix give the plan.json that `search` or `prune` wrote\n")


@pytest.mark.parametrize(
    ("data", "what", "fix"),
    [
        ("data.csv", "not calibration data", FORMS),
        ("no.npz", "no such file", FORMS),
        ("cli_models_for_test:number", "the factory returned int", "return an iterable of batches"),
    ],
)
def test_wrong_data(cli: Callable[..., Said], data: str, what: str, fix: str) -> None:
    assert cli("score", NET, "--data", data) == Said(2, "", f"error: {what}\n  at  {data}\n  fix {fix}\n")


def test_empty_data(cli: Callable[..., Said]) -> None:
    said = cli("prune", NET, "--data", "cli_models_for_test:empty")
    assert said.code == 2
    assert said.err.startswith("error: ")


def test_a_budget_that_is_no_budget(cli: Callable[..., Said]) -> None:
    said = cli("prune", NET, "--data", DATA, "--budget", "a little smaller")
    assert said.code == 2
    assert said.err.startswith("error: ")
    assert "  fix " in said.err


def test_interrupt(cli: Callable[..., Said], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(look, "read_model", interrupt)
    assert cli("group", NET).code == 130


def test_bugs_keep_their_traceback(cli: Callable[..., Said], monkeypatch: pytest.MonkeyPatch) -> None:
    def bug(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(look, "read_model", bug)
    with pytest.raises(ZeroDivisionError):
        cli("group", NET)


def test_python_m(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-m", "optin_fx", "--help"], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0
    assert all(command in done.stdout for command in COMMANDS)


# -- data --------------------------------------------------------------------------------------------------------------


def test_random_data_is_warned_about(program: ofx.Program) -> None:
    with pytest.warns(RandomDataWarning, match="calibrating on noise"):
        batches = list(read_data("random", program, rows=4, samples=10) or ())
    assert [tuple(batch.args[0].shape) for batch in batches] == [(4, 3)] * 3


def test_the_warning_reaches_the_user(cli: Callable[..., Said]) -> None:
    said = cli("score", NET, "--score", "magnitude", "--data", "random")
    assert said.code == 0, said.err
    assert said.err.startswith("warning: calibrating on noise")


def test_random_integers_stay_in_the_examples_range() -> None:
    class Embed(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = torch.nn.Embedding(50, 4)

        def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            return self.table(ids) * mask.unsqueeze(-1)

    program = ofx.trace(Embed(), (), {"ids": torch.tensor([[3, 9, 20]]), "mask": torch.ones(1, 3, dtype=torch.long)})
    (batch,) = random_batches(program, rows=64, samples=64)
    assert batch.args == ()
    assert batch.kwargs["ids"].min() == 3
    assert batch.kwargs["ids"].max() == 20
    assert batch.kwargs["mask"].eq(1).all()


def test_tensors_by_input_name(program: ofx.Program, tmp_path: Path) -> None:
    name = program.input_names[0]
    rows = torch.arange(30.0).reshape(10, 3)
    save_file({name: rows}, tmp_path / "x.safetensors")
    np.savez(tmp_path / "x.npz", **{name: rows.numpy()})
    torch.save({name: rows}, tmp_path / "x.pt")
    torch.save(rows, tmp_path / "bare.pt")
    for file in ("x.safetensors", "x.npz", "x.pt", "bare.pt"):
        batches = list(read_data(str(tmp_path / file), program, rows=4, samples=9) or ())
        assert [len(batch.args[0]) for batch in batches] == [4, 4, 1]
        assert torch.equal(torch.cat([batch.args[0] for batch in batches]), rows[:9])


def test_a_list_of_batches_is_taken_as_it_is(program: ofx.Program, tmp_path: Path) -> None:
    torch.save([(torch.ones(2, 3),), torch.ones(5, 3)], tmp_path / "x.pt")
    first, second = read_data(str(tmp_path / "x.pt"), program, rows=1, samples=1) or ()
    assert isinstance(first, tuple)
    assert isinstance(second, torch.Tensor)


def test_data_of_another_model(program: ofx.Program, tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", pixels=np.zeros((4, 3)))
    with pytest.raises(DataError) as caught:
        read_data(str(tmp_path / "x.npz"), program, rows=4, samples=4)
    what = f"the file holds pixels; the model takes {program.input_names[0]}"
    assert str(caught.value) == f"{what}\n  at  {tmp_path}/x.npz\n  fix name the tensors as the model's inputs"


def test_a_damaged_file(program: ofx.Program, tmp_path: Path) -> None:
    (tmp_path / "x.npz").write_bytes(b"not a zip")
    with pytest.raises(DataError) as caught:
        read_data(str(tmp_path / "x.npz"), program, rows=4, samples=4)
    assert str(caught.value).startswith("cannot read it: ")
    assert str(caught.value).endswith("  fix write it with torch.save, safetensors or numpy.savez")


def test_what_json_has_no_word_for() -> None:
    found = plain({"a": torch.tensor([1.5, float("inf")]), "b": Path("x"), 3: {1}, "c": np.float32(0.5), "d": (True, None)})
    assert found == {"a": [1.5, None], "b": "x", "3": [1], "c": 0.5, "d": [True, None]}

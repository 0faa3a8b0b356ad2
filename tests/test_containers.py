"""Inputs and outputs in the user's own classes: traced, pruned, saved, and read again where the class can be imported."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import nn

import optin_fx as ofx
from optin_fx.errors import LoadError


@dataclass
class Answer:
    logits: torch.Tensor
    hidden: torch.Tensor | None = None


class Pair(NamedTuple):
    first: torch.Tensor
    second: Answer


@dataclass
class Question:
    x: torch.Tensor


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, question: Question) -> Pair:
        y = self.down(self.up(question.x).relu())
        return Pair(y.sum(-1), Answer(y))


def test_dataclasses_and_named_tuples(tmp_path: Path) -> None:
    question = Question(torch.randn(2, 4))
    program = ofx.trace(Net(), (question,))
    found = program(Question(torch.randn(5, 4)))
    assert isinstance(found, Pair)
    assert isinstance(found.second, Answer)
    assert found.second.logits.shape == (5, 2)
    assert found.second.hidden is None
    plan = ofx.random_plan(program, 0.5)
    assert ofx.verify(program, plan, strict=True)
    small = ofx.load(ofx.rewrite(program, plan).save(tmp_path / "net.pt2"))
    assert torch.equal(small(question).first, ofx.rewrite(program, plan)(question).first)


MODULE = """
from dataclasses import dataclass
import torch
from torch import nn
@dataclass
class Out:
    y: torch.Tensor
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 6)
    def forward(self, x):
        return Out(self.fc(x))
"""


def with_and_without(folder: Path, script: str) -> tuple[str, str]:
    """What a script prints in a process that can import from a folder; what it is told in one that cannot."""

    def run(place: str, *, check: bool) -> subprocess.CompletedProcess[str]:
        begin = f"import sys; sys.path[0:0] = [{place!r}, {str(Path.cwd())!r}]; import torch; import optin_fx as ofx; "
        return subprocess.run([sys.executable, "-c", begin + script], capture_output=True, text=True, check=check)

    return run(str(folder), check=True).stdout.strip(), run("/nowhere", check=False).stderr


def test_a_file_is_read_where_nobody_imported_the_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "users_own.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    import users_own  # type: ignore[import-not-found]

    path = ofx.trace(users_own.Net(), (torch.randn(2, 4),)).save(tmp_path / "net.pt2")
    found, refused = with_and_without(tmp_path, f"p = ofx.load({str(path)!r}); print(type(p(*p.args)).__name__)")
    assert found == "Out"
    assert "the class of an input or output cannot be imported: No module named 'users_own'" in refused


@pytest.mark.parametrize("target", ["eager", "onnxruntime:cpu"])
def test_an_engine_gives_back_the_class_where_nobody_imported_it(target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if target != "eager":
        pytest.importorskip("onnxruntime")
    (tmp_path / "users_answer.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    import users_answer  # type: ignore[import-not-found]

    path = ofx.lower(ofx.trace(users_answer.Net(), (torch.randn(2, 4),)), target).save(tmp_path / "net")
    script = f"found = ofx.lowering.load_engine({str(path)!r})(torch.ones(3, 4)); print(type(found).__name__, tuple(found.y.shape))"
    found, refused = with_and_without(tmp_path, script)
    assert found == "Out (3, 6)"
    assert "the class of an input or output cannot be imported: No module named 'users_answer'" in refused


def test_a_class_that_is_nowhere(tmp_path: Path) -> None:
    @dataclass
    class Local:
        y: torch.Tensor

    class Inner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 6)

        def forward(self, x: torch.Tensor) -> Local:
            return Local(self.fc(x))

    program = ofx.trace(Inner(), (torch.randn(2, 4),))
    assert isinstance(program(torch.randn(3, 4)), Local)
    with pytest.raises(LoadError) as error:
        ofx.load(program.save(tmp_path / "net.pt2"))
    assert str(error.value).startswith("the class of an input or output cannot be imported: ")
    assert str(error.value).endswith("fix make the module that defines it importable, with the class at its top level")

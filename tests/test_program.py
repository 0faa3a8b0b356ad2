"""Programs: tracing, files, and the text of every refusal."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn

import optin_fx as ofx
from optin_fx.errors import LoadError, SaveError, TraceError
from optin_fx.program import Program


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(self.up(x).relu())


class Branching(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + 1 if x.sum() > 0 else x


@pytest.fixture
def program() -> Program:
    return ofx.trace(Net(), (torch.randn(2, 4),))


def test_called_as_the_model_is(program: Program) -> None:
    x = torch.randn(5, 4)
    assert torch.equal(program(x), program.module()(x))
    assert not program(x).requires_grad
    assert program.module()(x).requires_grad
    assert program.input_names == ("x",)
    assert repr(program) == f"Program({len(program.graph_module.graph.nodes)} nodes, 44 parameters, inputs x)"


def test_the_fingerprint_is_of_structure_not_of_values() -> None:
    first, second = (ofx.trace(Net(), (torch.randn(2, 4),)) for _ in range(2))
    assert first.fingerprint == second.fingerprint
    wider = Net()
    wider.up, wider.down = nn.Linear(4, 7), nn.Linear(7, 2)
    assert ofx.trace(wider, (torch.randn(2, 4),)).fingerprint != first.fingerprint


def test_a_file_keeps_everything(program: Program, tmp_path: Path) -> None:
    path = program.save(tmp_path / "new" / "folder" / "net.pt2")
    loaded = ofx.load(path)
    assert loaded.fingerprint == program.fingerprint
    assert str(ofx.group(loaded)) == str(ofx.group(program))
    assert torch.equal(loaded.args[0], program.args[0])
    assert torch.equal(loaded(*loaded.args), program(*program.args))
    assert torch.equal(torch.export.load(path).module()(*program.args), program(*program.args))


def test_an_exported_program_is_taken_as_it_is() -> None:
    exported = torch.export.export(Net().eval(), (torch.randn(2, 4),))
    program = ofx.trace(exported)
    assert program.exported is exported
    assert program(*program.args).shape == (2, 2)
    assert ofx.trace(program) is program


# -- refusals ------------------------------------------------------------------------------------------------------------


def test_no_module() -> None:
    with pytest.raises(TraceError) as error:
        ofx.trace(torch.relu, (torch.randn(2, 4),))  # type: ignore[arg-type]
    assert str(error.value) == "cannot trace a builtin_function_or_method\n  fix pass an nn.Module or a torch.export.ExportedProgram"


def test_no_inputs() -> None:
    with pytest.raises(TraceError) as error:
        ofx.trace(Net())
    assert str(error.value) == "no example inputs\n  so  the model cannot be traced\n  fix pass args and kwargs as the model is called"


def test_torch_refuses() -> None:
    with pytest.raises(TraceError) as error:
        ofx.trace(Branching(), (torch.randn(2, 4),))
    lines = str(error.value).splitlines()
    assert lines[0].startswith("torch.export refused Branching: ")
    assert "data-dependent" in lines[0].lower() or "guard" in lines[0].lower()
    assert f"test_program.py:{Branching.forward.__code__.co_firstlineno + 1}" in lines[1]
    assert lines[2] == "  so  there is no graph to prune"
    assert lines[3].startswith("  fix make torch.export.export(model.eval(), args, kwargs, strict=False) work first; common cures are ")
    assert error.value.__cause__ is not None


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(LoadError) as error:
        ofx.load(tmp_path / "absent.pt2")
    assert str(error.value) == f"no such file\n  at  {tmp_path / 'absent.pt2'}\n  fix check the path; programs end in .pt2"


def test_a_truncated_file(program: Program, tmp_path: Path) -> None:
    path = program.save(tmp_path / "net.pt2")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(LoadError) as error:
        ofx.load(path)
    assert str(error.value) == (
        f"not a readable .pt2: File is not a zip file\n  at  {path}\n"
        "  fix the file is truncated or of another kind; write it again with program.save(path)"
    )


def test_a_damaged_file(program: Program, tmp_path: Path) -> None:
    path = program.save(tmp_path / "net.pt2")
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        name = next(n for n in archive.namelist() if n.endswith("optin_fx.json"))
        at = archive.getinfo(name).header_offset
    data[at + 30 + len(name) + 40 : at + 30 + len(name) + 80] = b"\0" * 40
    path.write_bytes(data)
    with pytest.raises(LoadError) as error:
        ofx.load(path)
    assert str(error.value).startswith("not a readable .pt2: ")


def test_a_foreign_archive(tmp_path: Path) -> None:
    path = tmp_path / "other.pt2"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("hello.txt", "hello")
    with pytest.raises(LoadError) as error:
        ofx.load(path)
    first, at, fix = str(error.value).splitlines()
    assert first.startswith("torch.export cannot read it: ")
    assert at == f"  at  {path}"
    assert fix == "  fix write the file with program.save(path) or torch.export.save, with this version of torch or an older one"


def test_weights_are_no_program(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save(Net().state_dict(), path)
    with pytest.raises(LoadError) as error:
        ofx.load(path)
    assert str(error.value).startswith("torch.export cannot read it: ")


def test_a_place_that_cannot_be_written(program: Program, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    path = tmp_path / "file" / "net.pt2"
    with pytest.raises(SaveError) as error:
        program.save(path)
    what, at, so, fix = str(error.value).splitlines()
    assert what in ("cannot write the program: Not a directory", "cannot write the program: File exists")
    assert (at, so) == (f"  at  {path}", "  so  nothing was saved")
    assert fix == "  fix choose a folder that exists and that you may write to"


def test_a_folder_in_place_of_a_file(program: Program, tmp_path: Path) -> None:
    with pytest.raises(SaveError):
        program.save(tmp_path)

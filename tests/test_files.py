"""Files are replaced whole, and what cannot be written says so."""

from __future__ import annotations

from pathlib import Path

import pytest

from optin_fx.errors import SaveError
from optin_fx.files import replacing, saving, write_whole


def test_a_failure_on_the_way_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "new" / "facts.json"
    write_whole(path, "old")
    with pytest.raises(ZeroDivisionError), replacing(path) as fresh:
        fresh.write_text(f"half of it {1 / 0}")
    assert path.read_text() == "old"
    assert list(path.parent.iterdir()) == [path]
    write_whole(path, "new")
    assert path.read_text() == "new"


def test_what_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SaveError, match="cannot write the thing: File exists") as found, saving("the thing", tmp_path / "file" / "x"):
        raise AssertionError("there is no such folder")
    assert str(tmp_path / "file" / "x") in str(found.value)

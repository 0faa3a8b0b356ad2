"""The Python of README.md and of docs/ runs, block after block, as a reader would type it."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
NEED_FETCHED_DATA = {"tasks.md"}  # their code is compiled, not run
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(page: Path) -> list[tuple[int, str]]:
    """(line of the first statement, code) of each python block."""
    text = page.read_text()
    return [(text.count("\n", 0, found.start(1)), found.group(1)) for found in BLOCK.finditer(text)]


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)], ids=lambda page: page.name)
def test_python_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # what the page writes is written here
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    module = ModuleType(f"page_{page.stem.replace('-', '_')}")  # a real one: dataclasses look their module up
    monkeypatch.setitem(sys.modules, module.__name__, module)
    for line, code in blocks(page):
        # newlines in front, so that a traceback shows the line of the page
        ready = compile("\n" * line + code, str(page), "exec")
        if page.name not in NEED_FETCHED_DATA:
            exec(ready, vars(module))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    targets = [target for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()) if "://" not in target]
    missing = [target for target in targets if not (page.parent / target).exists()]
    assert not missing

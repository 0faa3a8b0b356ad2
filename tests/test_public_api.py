"""The public surface is this list. Whoever changes it changes it here, too, and in the CHANGELOG."""

from __future__ import annotations

import inspect
import zipfile
from importlib.metadata import version
from pathlib import Path
from subprocess import run
from sys import executable

import pytest

import optin_fx as ofx

VERBS = [
    "cost",
    "group",
    "load",
    "load_engine",
    "lower",
    "make_plan",
    "mask",
    "measure",
    "narrow",
    "prune",
    "prune_family",
    "random_plan",
    "restore",
    "rewrite",
    "rule",
    "score",
    "search",
    "trace",
    "verify",
]
NOUNS = ["Agreement", "Batch", "Cost", "Group", "Groups", "OptinError", "Plan", "Program", "Pruned", "Report", "Scores"]
ROOT = Path(__file__).resolve().parent.parent


def test_exact_names() -> None:
    assert sorted(ofx.__all__) == sorted(VERBS + NOUNS)


@pytest.mark.parametrize("name", VERBS + NOUNS)
def test_every_name_is_there_and_documented(name: str) -> None:
    found = getattr(ofx, name)
    assert inspect.getdoc(found), f"{name} has no docstring"


@pytest.mark.parametrize("name", VERBS)
def test_every_function_is_annotated(name: str) -> None:
    signature = inspect.signature(getattr(ofx, name))
    bare = [p.name for p in signature.parameters.values() if p.annotation is inspect.Parameter.empty]
    assert not bare, f"{name} has parameters without a type: {bare}"
    assert signature.return_annotation is not inspect.Signature.empty


@pytest.mark.parametrize("name", VERBS)
def test_no_function_is_hidden_by_a_module_of_its_name(name: str) -> None:
    assert not inspect.ismodule(getattr(ofx, name))


def test_version() -> None:
    assert ofx.__version__ == version("optin-fx")


@pytest.mark.slow
def test_wheel_holds_the_passes_and_the_type_marker(tmp_path: Path) -> None:
    """`optin_fx/passes` is a link in the source tree and must be real files in a wheel."""
    build = "from setuptools import build_meta; import sys; build_meta.build_wheel(sys.argv[1])"
    # a copy, because setuptools keeps what it built last beside the sources
    source = tmp_path / "source"
    copy_tree(ROOT, source)
    run([executable, "-c", build, str(tmp_path)], cwd=source, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    wanted = {f"optin_fx/passes/{path.name}" for path in (ROOT / "passes").glob("*.py")}
    assert wanted <= names
    assert {"optin_fx/py.typed", "optin_fx/cli/application.py"} <= names
    assert not [name for name in names if name.startswith(("passes/", "tests/", "tools/"))]


def copy_tree(source: Path, target: Path) -> None:
    from shutil import copy2, copytree, ignore_patterns

    target.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        copy2(source / name, target / name)
    for name in ("optin_fx", "passes"):
        copytree(source / name, target / name, symlinks=True, ignore=ignore_patterns("__pycache__"))

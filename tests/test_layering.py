"""Who may import whom. Intentions rot; these are facts."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "optin_fx"
MAY_IMPORT_PASSES = ("api.py", "pipeline.py", "cli", "passes", "__init__.py")
HEAVY = {
    "onnx", "onnxscript", "onnx_ir", "onnxruntime", "onnxconverter_common", "openvino", "tensorrt", "tensorrt_rtx", "transformers",
    "timm", "matplotlib", "torchvision", "hypothesis", "pytest", "torch_pruning", "sentence_transformers", "tokenizers",
    "torchao", "nncf", "executorch", "torch_tensorrt",
}  # fmt: skip


def sources(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*.py") if "__pycache__" not in path.parts)


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """Imported module names (`from a import b` counts as `a.b`, too), and whether at the top level."""
    tree = ast.parse(path.read_text())
    top = set(ast.iter_child_nodes(tree))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node in top) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            yield base, node in top
            yield from ((f"{base}.{alias.name}", node in top) for alias in node.names)


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


MECHANISM = [path for path in sources(PACKAGE) if "passes" not in path.relative_to(PACKAGE).parts]
POLICY = sources(ROOT / "passes")


def test_there_is_something_to_check() -> None:
    assert len(MECHANISM) > 5


def test_passes_is_one_folder_under_two_names() -> None:
    assert (PACKAGE / "passes").is_symlink()
    assert (PACKAGE / "passes").resolve() == ROOT / "passes"


@pytest.mark.parametrize("path", MECHANISM, ids=relative)
def test_mechanism_does_not_know_policy(path: Path) -> None:
    if path.relative_to(PACKAGE).parts[0] in MAY_IMPORT_PASSES:
        return
    known = [name for name, _ in imports(path) if name.startswith("optin_fx.passes") or name.lstrip(".").startswith("passes")]
    assert not known, f"{relative(path)} imports {known[0]}; only {', '.join(MAY_IMPORT_PASSES)} may"


@pytest.mark.parametrize("path", [*MECHANISM, *POLICY], ids=relative)
def test_heavy_packages_are_imported_late(path: Path) -> None:
    heavy = [name for name, at_top in imports(path) if at_top and name.split(".")[0] in HEAVY]
    inside_testing = path.relative_to(ROOT).parts[:2] == ("optin_fx", "testing")
    assert inside_testing or not heavy, f"{relative(path)} imports {heavy[0]} at its top; import it in the function that needs it"


@pytest.mark.parametrize("path", [*MECHANISM, *POLICY], ids=relative)
def test_the_library_does_not_import_tools_or_tests(path: Path) -> None:
    assert not [name for name, _ in imports(path) if name.split(".")[0] in ("tests", "tools", "tasks")]


@pytest.mark.parametrize("path", POLICY, ids=relative)
def test_passes_are_imported_by_their_installed_name(path: Path) -> None:
    """`passes.x` and `optin_fx.passes.x` would be two modules with two registries."""
    assert not [name for name, _ in imports(path) if name.split(".")[0] == "passes"]


def test_import_is_light() -> None:
    """`import optin_fx` brings torch and little else; what torch itself imports does not count."""
    script = "import sys, torch; before = set(sys.modules); import optin_fx; print(*(set(sys.modules) - before), sep='\\n')"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    loaded = {name.split(".")[0] for name in done.stdout.split()}
    assert not loaded & HEAVY

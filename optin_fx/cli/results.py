"""What `prune` writes: a folder per smaller program, and for a family a table and a picture."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import optin_fx as ofx
from optin_fx.cli.output import note, plain
from optin_fx.data import Batch
from optin_fx.errors import MissingExtra
from optin_fx.family import compare, plot, table


def write_result(result: ofx.Pruned, out: Path, title: str) -> dict[str, Any]:
    """pruned.pt2, plan.json and report.md; returns what --json shows."""
    out.mkdir(parents=True, exist_ok=True)
    result.program.save(out / "pruned.pt2")
    (out / "plan.json").write_text(result.plan.to_json())
    (out / "report.md").write_text(f"# {title}\n\n{result.report}\n")
    return {"folder": out, "plan": json.loads(result.plan.to_json()), "report": plain(result.report)}


def family_folder(budget: str) -> str:
    """A folder's name for a budget: `flops <= 50%` is `flops-50pct`."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", budget.replace("<=", " ").replace("%", "pct")).strip("-")


def write_family(results: Sequence[ofx.Pruned], budgets: Sequence[str], out: Path, batches: Sequence[Batch]) -> tuple[dict[str, Any], str]:
    """A folder per member, family.md and family.svg; returns what --json shows, and the table."""
    facts = [write_result(result, out / family_folder(budget), budget) for result, budget in zip(results, budgets, strict=True)]
    members = [compare(budget, r.program, r.dense, batches) for r, budget in zip(results, budgets, strict=True)]
    text = table(members)
    (out / "family.md").write_text(f"# {budgets[0]} to {budgets[-1]}\n\n{text}\n")
    try:
        plot(members, out / "family.svg")
    except MissingExtra as error:
        note(str(error))
    return {"folder": out, "members": [{**fact, **plain(asdict(m))} for fact, m in zip(facts, members, strict=True)]}, text

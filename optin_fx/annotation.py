"""Scores on the graph itself: in `node.meta["custom"]` of every node that consumes a scored group.

That key is the one that torch.export saves and loads. The graph's text stays the same.
"""

from __future__ import annotations

from typing import Any

import torch

from optin_fx.analysis import analyse
from optin_fx.groups import leaf_names
from optin_fx.program import Program
from optin_fx.scores import Scores

KEY = "optin_fx_scores"


def annotate(program: Program, scores: Scores) -> None:
    """Write scores to the nodes that consume their groups; earlier ones are replaced.

    Each such node gets `meta["custom"][KEY]`, by group: method, units, least, median and largest score; the first consumer of a group also
    all its scores, to six digits.
    """
    notes = _notes(program, scores)
    for graph in (program.exported.graph, program.graph_module.graph):
        for node in graph.nodes:
            custom = {key: value for key, value in (node.meta.get("custom") or {}).items() if key != KEY}
            if node.name in notes:
                custom[KEY] = notes[node.name]
            if custom or "custom" in node.meta:
                node.meta["custom"] = custom


def notes_on(program: Program) -> dict[str, dict[str, dict[str, Any]]]:
    """What `annotate` wrote: by node, by group. Empty for a program without scores."""
    found = {n.name: (n.meta.get("custom") or {}).get(KEY) for n in program.exported.graph.nodes}
    return {name: dict(note) for name, note in found.items() if note}


def annotated_scores(program: Program) -> Scores | None:
    """The scores that a program carries, to six digits; None if it has none."""
    values, method = {}, ""
    for note in notes_on(program).values():
        for group, facts in note.items():
            method = facts["method"]
            if "scores" in facts:
                values[group] = torch.tensor(facts["scores"], dtype=torch.float64)
    return Scores(values, method, program.fingerprint) if values else None


def listing(program: Program) -> str:
    """The annotated nodes as text, one line for each group that a node consumes."""
    lines = []
    for name, note in notes_on(program).items():
        for group, facts in note.items():
            spread = f"min {facts['min']:.3e}  median {facts['median']:.3e}  max {facts['max']:.3e}"
            lines.append(f"%{name:<24} {group}  {facts['units']} units  {spread}  by {facts['method']}")
    return "\n".join(lines) or "no node carries scores"


def _notes(program: Program, scores: Scores) -> dict[str, dict[str, dict[str, Any]]]:
    names = leaf_names(analyse(program))
    notes: dict[str, dict[str, dict[str, Any]]] = {}
    written: set[str] = set()
    for consumer in analyse(program).consumers():
        for group in sorted({names[leaf] for leaf in consumer.leaves if names.get(leaf) in scores.values}):
            value = scores[group]
            facts: dict[str, Any] = {"method": scores.method, "units": len(value)}
            facts |= {"min": float(value.min()), "median": float(value.median()), "max": float(value.max())}
            if group not in written:
                facts["scores"] = [float(f"{v:.6g}") for v in value.tolist()]
                written.add(group)
            notes.setdefault(consumer.node, {})[group] = facts
    return notes

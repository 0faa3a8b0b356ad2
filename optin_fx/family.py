"""A family of smaller programs, from loose budgets to tight ones: how far each is from the dense one, as a table and as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F

from optin_fx.costs import Cost, cost
from optin_fx.data import Batch
from optin_fx.errors import MissingExtra
from optin_fx.interpreter import Runner
from optin_fx.outputs import OutputTerm, output_terms
from optin_fx.program import Program


@dataclass(frozen=True)
class Member:
    """One program of a family.

    Attributes:
        budget: its budget. cost, dense: of it and of the dense program.
        change: relative root mean squared change of the outputs that count, on the calibration data.
        agreement: share of decisions (arg max) that are the dense program's, for logits; NaN otherwise.
    """

    budget: str
    cost: Cost
    dense: Cost
    change: float
    agreement: float


def compare(budget: str, small: Program, dense: Program, batches: Sequence[Batch]) -> Member:
    """How far a smaller program's outputs are from the dense one's, over some batches."""
    terms = output_terms(dense)
    gone = total = same = decisions = 0.0
    with torch.no_grad():
        for batch in batches:
            after, before = _outputs(small, batch, terms), _outputs(dense, batch, terms)
            for term, value, was in zip(terms, after, before, strict=True):
                gone, total = gone + float((value - was).square().sum()), total + float(was.square().sum())
                if term.kind == "logits":
                    same += float((value.argmax(-1) == was.argmax(-1)).sum())
                    decisions += was[..., 0].numel()
    return Member(budget, cost(small), cost(dense), (gone / max(total, 1e-30)) ** 0.5, same / decisions if decisions else float("nan"))


def table(members: Sequence[Member]) -> str:
    """A Markdown table of the members."""
    lines = [
        "| budget | GFLOPs | of dense | M params | change of outputs | same decision |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for m in members:
        share, agreement = m.cost.flops / m.dense.flops, "" if m.agreement != m.agreement else f"{m.agreement:.1%}"
        lines.append(f"| {m.budget} | {m.cost.flops / 1e9:.3f} | {share:.1%} | {m.cost.params / 1e6:.2f} | {m.change:.4f} | {agreement} |")
    return "\n".join(lines)


def plot(members: Sequence[Member], path: str | Path) -> Path:
    """Draw change (and agreement) over the share of FLOPs; the suffix names the format.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtra("matplotlib", "plot", needed_for="the picture of a family") from error
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    shares = [100 * m.cost.flops / m.dense.flops for m in members]
    axes.plot(shares, [m.change for m in members], "o-", color="tab:blue")
    axes.set_xlabel("FLOPs kept, % of dense")
    axes.set_ylabel("relative change of outputs", color="tab:blue")
    axes.set_ylim(bottom=0)
    if all(m.agreement == m.agreement for m in members):
        right = axes.twinx()
        right.plot(shares, [100 * m.agreement for m in members], "s--", color="tab:orange")
        right.set_ylabel("same decision, %", color="tab:orange")
    path = Path(path)
    figure.savefig(path)
    return path


def _outputs(program: Program, batch: Batch, terms: Sequence[OutputTerm]) -> list[torch.Tensor]:
    """Logits as log-probabilities and features as directions, the classes or features last."""
    flat = Runner(program)(batch)
    values = [flat[term.index].movedim(term.classes, -1).float() for term in terms]
    return [F.log_softmax(v, -1) if term.kind == "logits" else F.normalize(v, dim=-1) for term, v in zip(terms, values, strict=True)]

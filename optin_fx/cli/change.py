"""Commands that make a smaller model: search, rewrite, verify, prune."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

import optin_fx as ofx
from optin_fx.budget import parse_family
from optin_fx.cli import options
from optin_fx.cli.data import read_data
from optin_fx.cli.output import note, say, show, writable_file, writable_folder
from optin_fx.cli.results import family_folder, write_family, write_result
from optin_fx.cli.sizes import DEFAULT, with_sizes
from optin_fx.data import batches_of
from optin_fx.errors import BudgetError, PlanError
from optin_fx.execution import execution
from optin_fx.files import remove_if_empty
from optin_fx.models import Sizes, find_model, read_model
from optin_fx.recipe import DEFAULT_SCORE, rearranging_pass, rewriting_pass, scoring_pass, searching_pass
from optin_fx.scores import Scores

PlanFile = Annotated[Path, typer.Option("--plan", help="plan.json, as `search` or `prune` wrote it")]


def read_plan(path: Path) -> ofx.Plan:
    """A plan from a JSON file.

    Raises:
        PlanError: no such file, or not a plan.
    """
    try:
        return ofx.Plan.from_json(path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not a text"
        raise PlanError(f"cannot read the plan: {reason}", at=str(path), fix="give the plan.json that `search` or `prune` wrote") from error


@with_sizes
def search(
    model: options.Model,
    budget: options.Budget = "flops <= 50%",
    score: options.Score = DEFAULT_SCORE,
    data: options.Data = None,
    scores: Annotated[Path | None, typer.Option("--scores", help="scores that `score --out` wrote, in place of --score")] = None,
    search: Annotated[
        str, typer.Option("--search", metavar="NAME", help="how units are chosen: rank, kwon, knapsack; steps and trial need --data")
    ] = "rank",
    rearrange: options.Rearrange = False,
    narrow: options.Narrow = True,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="write the plan to this .json file")] = None,
    freeze: options.Freeze = None,
    width: options.Width = None,
    kinds: options.Kinds = "",
    align: options.Align = 0,
    allow: options.Allow = None,
    rows: options.Rows = 8,
    samples: options.Samples = 256,
    memory_limit: options.MemoryLimit = None,
    as_json: options.Json = False,
    sizes: Sizes = DEFAULT,
) -> None:
    """Choose the units to keep under a budget."""
    if out is not None:
        writable_file(out)
    searching = searching_pass(search, narrow, budget=budget, **options.steering(freeze, width, kinds, align))
    scoring = scoring_pass(score, rearranging_pass(rearrange and scores is None))
    program = read_model(model, sizes).allowing(*allow or ())
    batches = _batches(data, program, rows, samples)
    with execution(memory_limit=memory_limit, progress=sys.stderr.isatty()):
        found = Scores.load(scores) if scores is not None else ofx.score(program, scoring, data=batches)
        plan = ofx.search(program, found, method=searching, data=batches, rearrange=rearrange)
    if out is not None:
        out.write_text(plan.to_json())
    show(plan, json.loads(plan.to_json()), as_json=as_json)


@with_sizes
def rewrite(
    model: options.Model,
    plan: PlanFile,
    data: options.Data = None,
    compensate: options.Compensate = None,
    out: options.Out = Path("pruned.pt2"),
    rows: options.Rows = 8,
    samples: options.Samples = 256,
    memory_limit: options.MemoryLimit = None,
    as_json: options.Json = False,
    sizes: Sizes = DEFAULT,
) -> None:
    """Cut the model physically as a plan says, and save it. With --data what stays is refitted (--compensate reconstruct)."""
    writable_file(out)
    chosen, rewriting = read_plan(plan), None if compensate is None else rewriting_pass(compensate)
    program = read_model(model, sizes).allowing(*chosen.provenance.get("allow", ()))
    with execution(memory_limit=memory_limit, progress=sys.stderr.isatty()):
        small = ofx.rewrite(program, chosen, _batches(data, program, rows, samples), rewriting)
    small.save(out)
    before, after = ofx.cost(program), ofx.cost(small)
    facts = {
        "file": out,
        "flops": {"before": int(before.flops), "after": int(after.flops)},
        "params": {"before": int(before.params), "after": int(after.params)},
        "refit": small.provenance.get("refit", []),
    }
    text = f"{out}: {after.flops / before.flops:.1%} of the FLOPs, {after.params / before.params:.1%} of the parameters"
    if "refitted" in small.provenance:
        text += f"; {small.provenance['refitted']} layers refitted"
    show(text, facts, as_json=as_json)


def _batches(data: str | None, program: ofx.Program, rows: int, samples: int) -> list[Any] | None:
    """The batches of `--data`, as a list, for they are read more than once."""
    found = read_data(data, program, rows=rows, samples=samples)
    return None if found is None else list(found)


@with_sizes
def verify(
    model: options.Model,
    plan: PlanFile,
    as_json: options.Json = False,
    sizes: Sizes = DEFAULT,
) -> None:
    """Check that the physically smaller model computes what the masked one does."""
    chosen = read_plan(plan)
    agreement = ofx.verify(read_model(model, sizes).allowing(*chosen.provenance.get("allow", ())), chosen)
    show(agreement, agreement, as_json=as_json)


@with_sizes
def prune(
    model: options.Model,
    budget: options.Budget = "flops <= 50%",
    score: options.Score = DEFAULT_SCORE,
    data: options.Data = None,
    search: Annotated[
        str | None,
        typer.Option(
            "--search",
            metavar="NAME",
            help="how units are chosen: rank, kwon, knapsack, steps or trial [default: trial with reconstruct, else rank]",
        ),
    ] = None,
    rearrange: options.Rearrange = False,
    compensate: options.Compensate = "reconstruct",
    steps: Annotated[int, typer.Option("--steps", min=1, help="prune in so many steps, scoring again in each")] = 1,
    narrow: options.Narrow = True,
    out: options.Out = Path("optin-out"),
    freeze: options.Freeze = None,
    width: options.Width = None,
    kinds: options.Kinds = "",
    align: options.Align = 0,
    allow: options.Allow = None,
    rows: options.Rows = 8,
    samples: options.Samples = 256,
    memory_limit: options.MemoryLimit = None,
    as_json: options.Json = False,
    sizes: Sizes = DEFAULT,
) -> None:
    """All in one: trace, group, score, search, rewrite. Writes pruned.pt2, plan.json and report.md into a folder.

    A budget with several values, 'flops <= 90,70,50%', scores once and writes a folder for each, a table and a picture. Scoring that is
    interrupted goes on where it was when the same command is given again.
    """
    writable_folder(out)
    steer = options.steering(freeze, width, kinds, align)
    family = parse_family(budget)
    if len(family) > 1 and steps > 1:
        raise BudgetError("several budgets and several steps at once", fix="give one budget with --steps, or a family without")
    source = find_model(model, sizes)
    program = ofx.trace(source.model, source.args, source.kwargs).allowing(*allow or ())
    batches = _batches(data, program, rows, samples)
    how: dict[str, Any] = {"data": batches, "score": score, "search": search, "rearrange": rearrange, "compensate": compensate}
    how |= {"narrow": narrow, **steer}
    running = execution(memory_limit=memory_limit, progress=sys.stderr.isatty(), partial=out / "partial")
    if len(family) == 1:
        with running:
            result = ofx.prune(program, program.args, program.kwargs, budget=budget, steps=steps, **how)
        facts = write_result(result, out, f"{model}, {budget}")
        show(result.report, facts, as_json=as_json)
    else:
        with running:
            results = ofx.prune_family(program, program.args, program.kwargs, budget=budget, **how)
        facts, text = write_family(
            results, [str(b) for b in family], out, batches_of(program, batches, needed_for="the table") if batches else []
        )
        show(text, facts, as_json=as_json)
    remove_if_empty(out / "partial")  # it may hold what another run left
    if not as_json:
        say(f"\nwrote {out}/")
        folder = out if len(family) == 1 else out / family_folder(str(family[-1]))
        note(f"next: optin-fx measure {model} {folder}/pruned.pt2; optin-fx lower {folder}/pruned.pt2 --out {folder}/model.onnx")

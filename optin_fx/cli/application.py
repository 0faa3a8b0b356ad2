"""The application: its subcommands, its exit codes.

Exit codes: 0 done; 1 a bug (with a traceback); 2 refused, with the reason (what, at, so, fix); 130 interrupted.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import TextIO

import typer

from optin_fx.cli import change, engines, look, score
from optin_fx.cli.data import RandomDataWarning
from optin_fx.cli.output import note, show_error
from optin_fx.errors import OptinError

app = typer.Typer(
    name="optin-fx",
    help="Makes trained networks smaller and faster in one shot, without retraining.\n\n"
    "MODEL is model.pt2, package.module:factory, timm:NAME or hf:NAME_OR_FOLDER.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
COMMANDS: tuple[Callable[..., None], ...] = (
    look.group,
    score.score,
    change.search,
    change.rewrite,
    change.verify,
    change.prune,
    engines.measure,
    engines.lower,
    look.cost,
    look.passes,
)
for command in COMMANDS:
    app.command()(command)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line and exit."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # stderr is for our own notes
    sys.exit(run(arguments))


def run(arguments: Sequence[str]) -> int:
    """Run the command line; the exit code."""
    with warnings.catch_warnings():
        warnings.simplefilter("always", RandomDataWarning)
        warnings.showwarning = _show_warning
        try:
            app(args=list(arguments), prog_name="optin-fx")
        except OptinError as error:
            show_error(error, as_json="--json" in arguments)
            return 2
        except SystemExit as stop:  # typer always ends like this: 0, 2 for wrong usage, 130 for Ctrl-C
            return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    return 0


def _show_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, file: TextIO | None = None, line: str | None = None
) -> None:
    # our own warnings are for the user; those of libraries are for developers
    if category.__module__.startswith("optin_fx"):
        note(f"warning: {message}")

"""The command `optin-fx`: one subcommand for each verb of the API. Thin: every line of work is in `optin_fx`."""

from optin_fx.cli.application import app, main

__all__ = ["app", "main"]

"""The op rules, one family per file. Importing this package registers them all."""

from optin_fx.rules import (
    attention,
    contraction,
    convolution,
    creation,
    identity,
    indexing,
    joining,
    normalisation,
    recurrent,
    reduction,
    shaping,
    spatial,
    writing,
)

__all__ = [
    "attention",
    "contraction",
    "convolution",
    "creation",
    "identity",
    "indexing",
    "joining",
    "normalisation",
    "recurrent",
    "reduction",
    "shaping",
    "spatial",
    "writing",
]

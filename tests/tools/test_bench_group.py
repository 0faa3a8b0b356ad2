"""`tools/bench_group.py`: what an analysis takes."""

from __future__ import annotations

import torch
from bench_group import Chain, megabytes

import optin_fx as ofx
from optin_fx.analysis import analyse


def test_the_analysis_of_a_large_graph_is_small() -> None:
    """At most 20 kB a node, which is 200 MB for 10,000 (the tool measures 2)."""
    program = ofx.trace(Chain(100).eval(), (torch.randn(2, 4),))
    nodes = len(program.graph_module.graph.nodes)
    assert nodes > 700
    analyse(program)  # what is cached on the program is there
    assert 0 < 1e6 * megabytes(program) < 20_000 * nodes

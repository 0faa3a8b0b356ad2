"""The oracle over every architecture of the zoo, at small sizes: traced, groups found, sliced equals masked."""

from __future__ import annotations

import gc
import logging
import os
import warnings

import pytest
import torch
from torch.utils import _pytree as pytree

import optin_fx as ofx
from optin_fx.reconstruction import reconstruct
from optin_fx.retrace import is_dynamic, retrace
from optin_fx.testing import zoo

# The suite's share: two plans for every entry, and every third entry traced again. More plans trace all of them again.
PLANS = int(os.environ.get("OPTIN_FX_ZOO_PLANS", "2"))

# Nothing can be cut exactly, because a LayerNorm over the channels holds everything together.
HELD_BY_NORMS = {"gmlp"}


def test_the_zoo_is_large() -> None:
    assert len(zoo.ENTRIES) >= 100
    assert set(zoo.FAMILIES) == {"encoders", "decoders", "vision", "cnn", "hybrids", "plain"}


@pytest.mark.parametrize("entry", zoo.ENTRIES, ids=lambda e: e.name)
def test_entry(entry: zoo.Entry) -> None:
    logging.disable(logging.WARNING)  # libraries report what they chose not to use
    warnings.simplefilter("ignore")
    program = entry.program()
    groups = ofx.group(program)
    assert bool(groups.free) != (entry.name in HELD_BY_NORMS), str(groups)
    for seed in range(PLANS if groups.free else 0):
        plan = ofx.random_plan(program, keep=0.5, seed=seed)
        agreement = ofx.verify(program, plan)
        assert agreement, f"seed {seed}: {agreement}"
        assert agreement.moved > 1e-4, f"seed {seed}: the masked model is the dense one, so nothing was tested: {agreement}"
    if groups.free and (PLANS > 2 or zoo.ENTRIES.index(entry) % 3 == 0):
        check_smaller(entry, program, plan)
    if groups.free and (PLANS > 2 or zoo.ENTRIES.index(entry) % 3 == 1):
        check_compensated(entry, program, plan)
    if PLANS > 2 or zoo.ENTRIES.index(entry) % 3 == 2:
        check_narrowed(program)
    gc.collect()


def check_smaller(entry: zoo.Entry, program: ofx.Program, plan: ofx.Plan) -> None:
    """The rewritten program runs at another batch size and has the size that the plan promises."""
    small = ofx.rewrite(program, plan)
    promised, made = ofx.cost(program, plan), ofx.cost(small)
    assert made.params == promised.params
    assert made.flops == pytest.approx(promised.flops)
    if batch_is_dynamic(program):
        inputs = pytree.tree_map_only(torch.Tensor, lambda t: torch.cat([t, t[:1]]), entry.example())
        small(*inputs[0], **inputs[1])


def check_compensated(entry: zoo.Entry, program: ofx.Program, plan: ofx.Plan) -> None:
    """Consumers and the layers behind them can be refitted, and the result is of the size that the plan promises and finite."""
    module, report = reconstruct(program, plan, [ofx.Batch(program.args, program.kwargs)])
    assert report or entry.name == "tied_autoencoder"  # its layers share one weight, which two refits cannot both have
    small = retrace(module, program, provenance={})
    assert ofx.cost(small).flops == pytest.approx(ofx.cost(program, plan).flops)
    with torch.no_grad():
        outputs = pytree.tree_leaves(small(*program.args, **program.kwargs))
    assert all(value.isfinite().all() for value in outputs if isinstance(value, torch.Tensor) and value.is_floating_point())


def check_narrowed(program: ofx.Program) -> None:
    """Without the rows that nothing reads it computes what it did."""
    small = ofx.narrow(program)
    if small is program:
        return
    assert ofx.cost(small).flops < ofx.cost(program).flops
    with torch.no_grad():
        before, after = (pytree.tree_leaves(one(*program.args, **program.kwargs)) for one in (program, small))
    for old, new in zip(before, after, strict=True):
        if isinstance(old, torch.Tensor):
            assert torch.allclose(new, old, rtol=1e-4, atol=1e-5)


def batch_is_dynamic(program: ofx.Program) -> bool:
    fakes = [n.meta.get("val") for n in program.graph_module.graph.nodes if n.op == "placeholder"]
    tensors = [f for f in fakes if isinstance(f, torch.Tensor) and f.dim()]
    return all(is_dynamic(f.shape[0]) for f in tensors)

"""Rewriting small models of every awkward kind: what is smaller equals what is masked, also at another batch and from a file."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.nn import functional as F

import optin_fx as ofx
from optin_fx.rewriting import masked, sliced
from optin_fx.verifying import agreement


class Model(nn.Module):
    """Layers by keyword, and a function of them and the inputs."""

    def __init__(self, function: Callable[..., Any], **layers: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x: Any, *more: Any, **kwargs: Any) -> Any:
        return self.function(self, x, *more, **kwargs)


def lin(i: int, o: int) -> nn.Linear:
    return nn.Linear(i, o)


def x(rows: int, *rest: int) -> Tensor:
    return torch.randn(rows, *(rest or (8,)))


def heads(m: Any, v: Tensor) -> Tensor:
    b = v.shape[0]
    q = m.up(v).view(b, 7, 3, 8).transpose(1, 2).reshape(b * 3, 7, 8)
    y = torch.bmm(torch.bmm(q, q.transpose(1, 2)).softmax(-1), q)
    return m.down(y.reshape(y.shape[0] // 3, 3, 7, 8).transpose(1, 2).reshape(b, 7, -1))


def folded(m: Any, v: Tensor) -> Tensor:
    y = m.up(v).view(v.shape[0], 7, 3, 8).transpose(1, 2).flatten(0, 1).exp()
    y = y.reshape(y.shape[0], 56)
    return m.down(torch.zeros(y.shape[0], 56) + y).reshape(-1, 3, 5).sum(1)


def in_place(m: Any, v: Tensor) -> Tensor:
    y = v.new_zeros(v.shape[0], 16)
    y[:, :6] = m.a(v)
    y[:, 6:] = m.b(v)
    y[:, 2:4] += 1
    return m.down(y)


def without_gradient(m: Any, v: Tensor) -> Tensor:
    with torch.no_grad():
        gate = m.gate(v).sigmoid()
    return m.down(m.up(v) * gate)


def twice_without_gradient(m: Any, v: Tensor) -> Tensor:
    with torch.no_grad():
        gate = m.gate(v)
    up = m.up(v)
    with torch.no_grad():
        gate = gate.sigmoid()
    return m.down(up * gate)


def no_autocast(m: Any, v: Tensor) -> Tensor:
    with torch.autocast("cpu", enabled=False):
        y = m.up(v).sigmoid()
    return m.down(y)


def either(m: Any, v: Tensor) -> Tensor:
    return m.down(torch.cond(v.sum() > 0, lambda v: m.up(v), lambda v: m.gate(v), (v,)))


def nested(m: Any, inputs: Any, flag: None = None, scale: int = 2, extra: Tensor | None = None) -> Any:
    y = m.down(m.up(inputs["a"] + inputs["b"][0]).relu() * scale)
    return {"y": y if extra is None else y + extra, "flag": flag}


def folded_then_summed(m: Any, v: Tensor) -> Tensor:
    return m.down(m.up(v).view(v.shape[0] * 6, 4)).sum(0)


def clashing(m: Any, v: Tensor) -> Tensor:
    y = torch.cat([m.a(v), m.b(v)], 1).view(v.shape[0], 4, 4)
    return m.down(y) + m.down(m.c(v)).unsqueeze(1)


def attended(m: Any, v: Tensor) -> Tensor:
    v = m.up(v)
    return m.down(m.attention(v, v, v, need_weights=False)[0] + v)


def tied() -> nn.Module:
    model = Model(
        lambda m, v: m.out(m.down(m.up(m.table(v)).relu())), table=nn.Embedding(20, 8), up=lin(8, 16), down=lin(16, 8), out=lin(8, 20)
    )
    model.out.weight = model.table.weight
    return model


def inputs(rows: int) -> Any:
    return {"a": x(rows), "b": (x(rows),)}


Case = tuple[Callable[[], nn.Module], Callable[[int], tuple[tuple[Any, ...], dict[str, Any]]], int]
# a model, its inputs for a number of rows, and how many groups may shrink
CASES: dict[str, Case] = {
    "heads folded into the batch": (lambda: Model(heads, up=lin(8, 24), down=lin(24, 5)), lambda n: ((x(n, 7, 8),), {}), 2),
    "a size read off a folded tensor": (lambda: Model(folded, up=lin(8, 24), down=lin(56, 5)), lambda n: ((x(n, 7, 8),), {}), 2),
    "multi-head attention": (
        lambda: Model(attended, up=lin(8, 24), down=lin(24, 5), attention=nn.MultiheadAttention(24, 3, batch_first=True)),
        lambda n: ((x(n, 7, 8),), {}),
        3,
    ),
    "writes in place": (lambda: Model(in_place, a=lin(8, 6), b=lin(8, 10), down=lin(16, 3)), lambda n: ((x(n),), {}), 4),
    "a no-grad region": (lambda: Model(without_gradient, up=lin(8, 16), gate=lin(8, 16), down=lin(16, 3)), lambda n: ((x(n),), {}), 1),
    "no-grad regions in a row": (
        lambda: Model(twice_without_gradient, up=lin(8, 16), gate=lin(8, 16), down=lin(16, 3)), lambda n: ((x(n),), {}), 1
    ),
    "autocast that is off": (lambda: Model(no_autocast, up=lin(8, 16), down=lin(16, 3)), lambda n: ((x(n),), {}), 1),
    "a conditional": (lambda: Model(either, up=lin(8, 16), gate=lin(8, 16), down=lin(16, 3)), lambda n: ((x(n),), {}), 0),
    "nested inputs": (lambda: Model(nested, up=lin(8, 16), down=lin(16, 3)), lambda n: ((inputs(n),), {}), 1),
    "None, a number and a keyword": (
        lambda: Model(nested, up=lin(8, 16), down=lin(16, 3)), lambda n: ((inputs(n), None, 3), {"extra": x(n, 3)}), 1
    ),
    "any number of inputs": (
        lambda: Model(lambda m, v, *more, z: m.down(m.up(v + more[0]) + m.up(z)), up=lin(8, 16), down=lin(16, 3)),
        lambda n: ((x(n), x(n)), {"z": x(n)}),
        1,
    ),
    "one row of a second input": (
        lambda: Model(lambda m, v, row: m.down(m.up(v)) + row, up=lin(8, 16), down=lin(16, 3)), lambda n: ((x(n), x(1, 3)), {}), 1
    ),
    "units summed with the batch stay": (lambda: Model(folded_then_summed, up=lin(8, 24), down=lin(4, 3)), lambda n: ((x(n),), {}), 1),
    "axes without a common refinement stay": (
        lambda: Model(clashing, a=lin(8, 6), b=lin(8, 10), c=lin(8, 4), down=lin(4, 3)), lambda n: ((x(n),), {}), 0
    ),
    "a squeeze beside a width of one": (
        lambda: Model(lambda m, v: m.down(m.conv(v).mean((2, 3), keepdim=True).squeeze()), conv=nn.Conv2d(3, 6, 3), down=lin(6, 3)),
        lambda n: ((x(n, 3, 5, 5),), {}),
        1,
    ),
    "a table that is the output, too": (tied, lambda n: ((torch.randint(0, 20, (n, 5)),), {}), 2),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_smaller_equals_masked(name: str, tmp_path: Path) -> None:
    make, inputs_of, expected = CASES[name]
    (args, kwargs), (more_args, more_kwargs) = inputs_of(4), inputs_of(7)
    program = ofx.trace(make(), args, kwargs)
    assert len(ofx.group(program).free) == expected
    for seed in range(5):
        plan = ofx.random_plan(program, keep=0.4, seed=seed)
        assert ofx.verify(program, plan)
    small, zeroed = ofx.rewrite(program, plan), ofx.mask(program, plan)
    wanted = zeroed(*more_args, **more_kwargs)
    assert agreement(small(*more_args, **more_kwargs), wanted)
    loaded = ofx.load(small.save(tmp_path / "small.pt2"))
    assert agreement(loaded(*more_args, **more_kwargs), wanted)
    assert loaded.fingerprint == small.fingerprint
    assert loaded.provenance == small.provenance
    before, after = ofx.cost(program), ofx.cost(small)
    assert (after.params, after.macs) == (ofx.cost(program, plan).params, ofx.cost(program, plan).macs)
    assert after.params < before.params if expected else after.params == before.params


def test_one_row_of_examples_keeps_the_batch_dynamic() -> None:
    program = ofx.trace(Model(lambda m, v: m.down(m.up(v)), up=lin(8, 16), down=lin(16, 3)), (x(1),))
    small = ofx.rewrite(program, ofx.random_plan(program, keep=0.3))
    assert small(x(6)).shape == (6, 3)
    assert ofx.cost(small).macs == ofx.cost(program, ofx.random_plan(program, keep=0.3)).macs


def test_slices_of_a_dynamic_length() -> None:
    """The last token, and a window: their places stay when the width shrinks."""
    model = Model(lambda m, v: (m.down(m.up(v)[:, -1:]), m.down(m.up(v)[:, 1:3])), up=lin(8, 6), down=lin(6, 3))
    program = ofx.trace(model, (x(2, 7, 8),))
    lengths = ofx.trace(model, (x(2, 7, 8),), dynamic_shapes={"x": {1: Dim.DYNAMIC}})
    for traced, value in ((program, x(5, 7, 8)), (lengths, x(2, 9, 8))):
        plan = ofx.random_plan(traced, keep=0.3)
        assert plan.kept
        assert agreement(ofx.rewrite(traced, plan)(value), ofx.mask(traced, plan)(value))


def test_ties_stay_ties() -> None:
    program = ofx.trace(tied(), (torch.randint(0, 20, (2, 5)),))
    small = ofx.rewrite(program, ofx.random_plan(program, keep=0.3))
    tables = [t for t in small.tensors.values() if t.shape[0] == 20 and t.dim() == 2]
    assert len({t.untyped_storage().data_ptr() for t in tables}) == 1
    assert sum(p.numel() for p in small.module().parameters()) == ofx.cost(small).params


def test_the_program_and_the_model_are_untouched() -> None:
    model = Model(
        lambda m, v: m.down(F.dropout(m.norm(m.up(v)), 0.3, m.training)), up=nn.Conv1d(3, 6, 3), norm=nn.BatchNorm1d(6), down=lin(5, 2)
    )
    model.train()
    before = copy.deepcopy(model.state_dict())
    program = ofx.trace(model, (x(2, 3, 7),))
    graph, values = str(program.graph_module.graph), program(x(2, 3, 7).fill_(1.0))
    plan = ofx.random_plan(program, keep=0.3)
    ofx.rewrite(program, plan)
    ofx.mask(program, plan)
    assert str(program.graph_module.graph) == graph
    assert torch.equal(program(torch.ones(2, 3, 7)), values)
    assert model.training
    assert all(module.training for module in model.modules())
    assert all(p.requires_grad for p in model.parameters())
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_the_result_trains() -> None:
    model = Model(lambda m, v: m.down(F.relu(m.norm(m.up(v))).mean(-1)), up=nn.Conv1d(3, 8, 3), norm=nn.BatchNorm1d(8), down=lin(8, 2))
    program = ofx.trace(model, (x(4, 3, 7),))
    module = ofx.rewrite(program, ofx.random_plan(program, keep=0.4)).module()
    optimiser = torch.optim.Adam(module.parameters(), lr=0.02)
    data, target = x(16, 3, 7), x(16, 2)
    losses = []
    for _ in range(30):
        optimiser.zero_grad()
        loss = F.mse_loss(module(data), target)
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


def test_edited_graphs_carry_no_stale_assertions() -> None:
    program = ofx.trace(Model(lambda m, v: m.down(m.up(v).to(torch.float64).float()), up=lin(8, 16), down=lin(16, 3)), (x(2),))
    plan = ofx.random_plan(program, keep=0.4)
    for module in (sliced(program, plan), masked(program, plan)):
        assert "_assert_tensor_metadata" not in str(module.graph)
        assert module(x(2)).shape == (2, 3)

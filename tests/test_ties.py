"""Tensors that are one memory stay one memory; frozen ones stay frozen; what the graph does not read is not lost."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.nn import functional as F

import optin_fx as ofx
from optin_fx.attributes import from_memory_order, in_memory_order, storage_key, unique_storages
from optin_fx.writeback import apply_to


class Autoencoder(nn.Module):
    """The decoder's weight is the encoder's, transposed: two parameters of one memory."""

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.decode = nn.Linear(6, 8), nn.Linear(8, 6)
        self.decode.weight = nn.Parameter(self.encode.weight.detach().t())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.decode(self.encode(x).relu())


def count(program: ofx.Program) -> int:
    return sum(t.numel() for t in unique_storages(program.module().parameters()))


def test_a_transposed_view_is_a_tie() -> None:
    model = Autoencoder()
    program = ofx.trace(model, (torch.randn(2, 6),))
    assert count(program) == 6 * 8 + 8 + 6 == ofx.cost(program).params
    (group,) = ofx.group(program).free
    assert group.members == (("encode.weight", 0), ("encode.bias", 0), ("decode.weight", 1))
    plan = ofx.make_plan(program, {group.name: [0, 3, 5]})
    assert ofx.verify(program, plan, strict=True)
    small = ofx.rewrite(program, plan)
    assert count(small) == 6 * 3 + 3 + 6 == ofx.cost(program, plan).params == ofx.cost(small).params
    tensors = small.tensors
    assert tensors["encode.weight"].data_ptr() == tensors["decode.weight"].data_ptr()
    assert apply_to(model, program, plan)
    assert model.encode.weight.data_ptr() == model.decode.weight.data_ptr()
    assert model.decode.weight.shape == (6, 3)
    assert torch.allclose(model(program.args[0]), small(*program.args))
    fresh = ofx.restore(Autoencoder(), apply_to(copy_of(program), program, plan).plan, model.state_dict())
    assert fresh.encode.weight.data_ptr() == fresh.decode.weight.data_ptr()
    assert torch.equal(fresh(program.args[0]), model(program.args[0]))


def copy_of(program: ofx.Program) -> nn.Module:
    model = Autoencoder()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(program.tensors[name])
    return model


def test_memory_shared_in_another_form_keeps_its_extents() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.out = nn.Linear(4, 6), nn.Linear(4, 3), nn.Linear(9, 2)
            self.b.weight = nn.Parameter(self.a.weight.detach()[:3])  # a part of it

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.out(torch.cat([self.a(x), self.b(x)], -1))

    program = ofx.trace(Net(), (torch.randn(2, 4),))
    groups = ofx.group(program)
    assert not groups.free
    assert "it shares memory with a.weight in another form" in str(groups)


def test_frozen_parameters_stay_frozen() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    model[0].requires_grad_(False)
    program = ofx.trace(model, (torch.randn(2, 4),))
    small = ofx.rewrite(program, ofx.random_plan(program, 0.5))
    for found in (program, small):
        assert {name for name, p in found.module().named_parameters() if not p.requires_grad} == {"0.weight", "0.bias"}


def test_buffers_that_the_graph_does_not_read_are_kept() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 2, 1))
    model[1].num_batches_tracked += 7
    program = ofx.trace(model, (torch.randn(2, 3, 2, 2),))
    plan = ofx.random_plan(program, 0.5)
    small = ofx.rewrite(program, plan)
    again = ofx.rewrite(small, ofx.random_plan(small, 0.5, seed=1))
    for found in (program, small, again):
        state = found.module().state_dict()
        assert set(state) == set(model.state_dict())
        assert state["1.num_batches_tracked"] == 7


def test_memory_order() -> None:
    weight = torch.randn(3, 1, 4)
    view = weight.permute(2, 0, 1)
    assert storage_key(weight) == storage_key(view) != storage_key(weight[:2])
    assert torch.equal(in_memory_order(weight, weight), in_memory_order(view, view))
    again = from_memory_order(in_memory_order(weight, weight), view)
    assert torch.equal(again, view)
    assert again.data_ptr() == weight.data_ptr()
    smaller = in_memory_order(weight[:, :, [0, 2]], weight)
    assert torch.equal(from_memory_order(smaller, view), view[[0, 2]])


def test_no_grad_and_detach_stay_what_they_are() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate, self.up, self.down = nn.Linear(4, 8), nn.Linear(4, 8), nn.Linear(8, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            with torch.no_grad():
                gate = F.sigmoid(self.gate(x))
            return self.down(self.up(x) * gate) + self.up(x).detach().sum(-1, keepdim=True)

    program = ofx.trace(copy.deepcopy(Net()), (torch.randn(2, 4),))
    plan = ofx.random_plan(program, 0.5)
    assert ofx.verify(program, plan, strict=True)
    small = ofx.rewrite(program, plan).module()
    small(*program.args).sum().backward()
    assert {name for name, p in small.named_parameters() if p.grad is None} == {"gate.weight", "gate.bias"}

"""What the walk over a graph concludes: which axes are one, which are pinned, where units are consumed."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.export import Dim

import optin_fx as ofx
from optin_fx.analysis import Analysis, analyse
from optin_fx.dims import SYMBOLIC
from optin_fx.sizes import _prime


class Net(nn.Module):
    def __init__(self, function: Callable[..., Tensor], **layers: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def analysed(function: Callable[..., Tensor], *inputs: Tensor, **layers: nn.Module) -> Analysis:
    return analyse(ofx.trace(Net(function, **layers), inputs))


def test_one_analysis_per_program() -> None:
    program = ofx.trace(nn.Linear(3, 2), (torch.randn(2, 3),))
    assert analyse(program) is analyse(program)


def test_heads_fall_out_of_a_view() -> None:
    found = analysed(
        lambda m, x: m.o(m.q(x).view(x.shape[0], 5, 3, 4).transpose(1, 2).exp().transpose(1, 2).flatten(2)),
        torch.randn(2, 5, 8), q=nn.Linear(8, 12), o=nn.Linear(12, 2),
    )  # fmt: skip
    assert repr(found.axes["q_weight"]) == "[(3 4), 8]"
    assert repr(found.axes["o_weight"]) == "[2, (3 4)]"


def test_consumers_are_the_contractions() -> None:
    found = analysed(lambda m, x: m.b(m.a(x).relu()), torch.randn(2, 3), a=nn.Linear(3, 4), b=nn.Linear(4, 2))
    places = [(c.node, c.operand, c.dim, sorted(leaf.size for leaf in c.leaves)) for c in found.consumers()]
    assert places == [("linear", 0, 1, [3]), ("linear_1", 0, 1, [4])]


def test_a_grouped_convolution_sums_over_widths_and_passes_groups() -> None:
    found = analysed(lambda m, x: m.b(m.a(x)), torch.randn(2, 3, 4, 4), a=nn.Conv2d(3, 6, 1), b=nn.Conv2d(6, 4, 1, groups=2))
    last = [c for c in found.consumers() if c.node == "conv2d_1" and c.dim == 1]
    assert [sorted(leaf.size for leaf in c.leaves) for c in last] == [[3]]


def test_symbolic_sizes_are_primes_and_hints_are_the_examples() -> None:
    program = ofx.trace(
        Net(lambda m, x: m.a(x).flatten(0, 1), a=nn.Linear(3, 4)),
        (torch.randn(2, 5, 3),),
        dynamic_shapes={"x": {0: Dim("n"), 1: Dim("t", min=2)}},
    )
    found = analyse(program)
    sizes = [axis.root().size for axis in found.axes["x"]]
    assert sizes[0] > SYMBOLIC
    assert sizes[1] > SYMBOLIC
    assert sizes[0] != sizes[1]
    flat = found.axes["flatten"][0].root()
    assert (flat.size, flat.hint) == (sizes[0] * sizes[1], 10)


def test_many_symbols_stay_apart() -> None:
    primes = [_prime(k) for k in range(40)]
    assert len(set(primes)) == 40
    assert min(primes) > SYMBOLIC


def test_batch_is_the_first_dim_of_inputs() -> None:
    found = analysed(lambda m, x: m.a(x), torch.randn(2, 3), a=nn.Linear(3, 2))
    assert found.batch == [found.axes["x"][0]]


def test_a_clash_pins_both_sides_and_what_flows_on() -> None:
    found = analysed(
        lambda m, x: m.o(torch.cat([m.a(x), m.b(x)], 1).view(x.shape[0], 4, 4)),
        torch.randn(2, 3), a=nn.Linear(3, 6), b=nn.Linear(3, 10), o=nn.Linear(4, 2),
    )  # fmt: skip
    pins = {str(why).split(" at ")[0] for why in found.pinned_leaves().values()}
    assert "no common refinement of (4 4) and (6 + 10)" in pins
    assert not ofx.group(found.program).free

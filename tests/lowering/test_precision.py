"""Half precision on the graph, and BatchNorm folded before it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import optin_fx as ofx
from optin_fx.lowering.fold import fold_batch_norm
from optin_fx.lowering.precision import in_precision


def float_ops(program: ofx.Program, dtype: torch.dtype, *names: str) -> list[str]:
    return [
        node.name
        for node in program.exported.graph.nodes
        if node.op == "call_function" and str(node.target).split(".")[1:2] in [[name] for name in names] and node.meta["val"].dtype == dtype
    ]


def test_full_precision_is_the_program_itself(dense: ofx.Program) -> None:
    assert in_precision(dense, "fp32") is dense
    assert in_precision(dense, "tf32") is dense


@pytest.mark.parametrize(("precision", "dtype", "limit"), [("fp16", torch.float16, 3e-3), ("bf16", torch.bfloat16, 3e-2)])
def test_products_are_half_and_the_interface_is_not(dense: ofx.Program, precision: str, dtype: torch.dtype, limit: float) -> None:
    half = in_precision(dense, precision)
    products = ("linear", "scaled_dot_product_attention")
    assert len(float_ops(half, dtype, *products)) == 15
    assert float_ops(half, torch.float32, *products) == []
    x = torch.randn(5, 32, 64)
    expected, found = dense(x), half(x)
    assert found.dtype == torch.float32
    assert 0 < (found - expected).abs().max() / expected.abs().max() < limit
    assert all(tensor.dtype == torch.float32 for tensor in dense.tensors.values())


def test_islands_of_full_precision_stay_and_tables_do_not_widen_the_stream() -> None:
    class Islands(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("frequency", torch.arange(1.0, 9.0))
            self.register_buffer("position", torch.randn(4, 8))
            self.weight = nn.Parameter(torch.rand(8) + 0.5)
            self.linear = nn.Linear(8, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = x + self.position
            wide = x.to(torch.float32)
            normed = self.weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)).to(x.dtype)
            angle = torch.arange(4)[:, None].float() * self.frequency
            return x + self.linear(normed * angle.cos())

    program = ofx.trace(Islands(), (torch.randn(2, 4, 8),))
    half = in_precision(program, "bf16")
    assert len(float_ops(half, torch.float32, "rsqrt", "pow", "cos")) == 3
    assert len(float_ops(half, torch.bfloat16, "add", "linear")) == 2
    x = torch.randn(3, 4, 8)
    torch.testing.assert_close(half(x), program(x), rtol=0.05, atol=0.05)


def test_a_batch_of_one_stays_dynamic() -> None:
    program = ofx.trace(nn.Linear(4, 4), (torch.randn(1, 4),))
    assert in_precision(program, "bf16")(torch.randn(7, 4)).shape == (7, 4)


@pytest.mark.parametrize("decomposed", [False, True])
def test_folding_batch_norm_changes_nothing_but_the_graph(cnn: ofx.Program, decomposed: bool) -> None:
    exported = cnn.exported.run_decompositions() if decomposed else cnn.exported
    module = exported.module(check_guards=False)
    x = torch.randn(3, 3, 16, 16)
    expected = module(x)
    assert fold_batch_norm(module) == 2
    assert not [node for node in module.graph.nodes if "batch_norm" in str(node.target)]
    torch.testing.assert_close(module(x), expected, rtol=1e-4, atol=1e-5)


def test_a_convolution_with_two_users_is_not_folded() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.conv(x)
            return self.norm(y) + y

    module = ofx.trace(Shared(), (torch.randn(2, 3, 4, 4),)).exported.module(check_guards=False)
    assert fold_batch_norm(module) == 0

"""Shape arithmetic that needs none: reshapes with constant targets, transposed keys as one Transpose."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import optin_fx as ofx
from optin_fx.lowering import Engine, lower

pytest.importorskip("onnx")


class Attention(nn.Module):
    """Self-attention whose layers have different numbers of heads."""

    def __init__(self, *heads: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.ModuleList([nn.Linear(32, 48 * count), nn.Linear(16 * count, 32)]) for count in heads)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for qkv, out in self.layers:
            batch, length, _ = x.shape
            query, key, value = (part.view(batch, length, -1, 16).transpose(1, 2) for part in qkv(x).chunk(3, -1))
            mixed = nn.functional.scaled_dot_product_attention(query, key, value)
            x = x + out(mixed.transpose(1, 2).reshape(batch, length, -1))
        return x


def lowered(model: nn.Module, *, optimize: bool = True, dims: int = 2) -> Engine:
    torch.manual_seed(0)
    names = {dim: torch.export.Dim(name, max=64) for dim, name in list(enumerate(("batch", "length")))[:dims]}
    return lower(ofx.trace(model, (torch.randn(2, 9, 32),), dynamic_shapes=(names,)), "onnx", optimize=optimize)


@pytest.mark.parametrize("dims", [1, 2])
def test_layers_of_different_widths_need_no_shape_nodes(dims: int) -> None:
    model = Attention(1, 2, 3).eval()
    engine = lowered(model, dims=dims)
    ops = engine.info()["ops"]
    assert not {"Shape", "Concat", "Slice", "Identity"} & set(ops)
    assert ops["Transpose"] == 3 * 5  # q, k and v by heads, the keys once more, and back
    assert ops["Reshape"] == 3 * 4
    length = 17 if dims == 2 else 9
    for rows in (1, 5):
        x = torch.randn(rows, length, 32)
        torch.testing.assert_close(engine(x), model(x), rtol=1e-4, atol=1e-5)
    assert "Shape" in lowered(model, optimize=False).info()["ops"]


def test_widths_do_not_change_the_number_of_nodes() -> None:
    assert lowered(Attention(2, 2)).info()["ops"] == lowered(Attention(1, 3)).info()["ops"]


def test_rows_that_were_flattened_come_back_by_one_target_for_all_widths() -> None:
    class Flattened(nn.Module):
        def __init__(self, *widths: int) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.ModuleList([nn.Linear(32, width), nn.Linear(width, 32)]) for width in widths)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for up, down in self.layers:
                hidden = torch.addmm(up.bias, x.flatten(0, 1), up.weight.T).view(*x.shape[:2], -1)
                x = x + down(hidden.tanh())
            return x

    model = Flattened(8, 5, 12).eval()
    engine = lowered(model)
    assert engine.info()["ops"] == lowered(Flattened(8, 8, 8)).info()["ops"]
    assert engine.info()["ops"]["Concat"] == 1
    x = torch.randn(3, 17, 32)
    torch.testing.assert_close(engine(x), model(x), rtol=1e-4, atol=1e-5)


class Masked(nn.Module):
    """Scores of layers with different numbers of heads, masked by one mask that is expanded to each of them."""

    def __init__(self, *heads: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(32, 16 * count) for count in heads)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        found = []
        for layer in self.layers:
            heads = layer(x).unflatten(-1, (-1, 16)).transpose(1, 2)
            scores = heads @ heads.mT
            mask = (x[:, None, None, :, 0] > 0).expand(scores.shape)
            found.append(scores.masked_fill(mask, -1.0).softmax(-1))
        return found


def test_a_mask_is_not_expanded_to_the_heads_of_each_layer() -> None:
    model = Masked(1, 2, 3).eval()
    engine = lowered(model)
    assert "Expand" not in engine.info()["ops"]
    assert engine.info()["ops"] == lowered(Masked(2, 2, 2)).info()["ops"]
    x = torch.randn(3, 17, 32)
    torch.testing.assert_close(engine(x), model(x), rtol=1e-4, atol=1e-5)


def test_an_expansion_that_is_read_as_it_is_stays() -> None:
    class Repeated(nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            wide = x[:, :1].expand(x.shape)
            return wide + x[:, :1], (x[:, 1:2].expand(x.shape) @ x.mT)

    engine = lowered(Repeated())
    assert engine.info()["ops"]["Expand"] == 2
    x = torch.randn(3, 6, 32)
    torch.testing.assert_close(engine(x), Repeated()(x), rtol=1e-4, atol=1e-5)


def test_a_target_that_neither_zero_nor_minus_one_can_say_stays() -> None:
    class Misread(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            batch, length, width = x.shape
            return x.relu().reshape(length, batch, width) + 1

    model = Misread()
    engine = lowered(model)
    x = torch.randn(3, 6, 32)
    assert "Concat" in engine.info()["ops"]
    torch.testing.assert_close(engine(x), model(x))


def test_a_reshape_to_its_own_shape_goes_unless_it_is_an_output() -> None:
    class Same(nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            batch, length, width = x.shape
            return x.reshape(batch, length, width).relu(), x.relu().reshape(batch, length, width)

    engine = lowered(Same())
    x = torch.randn(3, 6, 32)
    for found in engine(x):
        torch.testing.assert_close(found, x.relu())

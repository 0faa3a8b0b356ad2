"""Ops and outputs that torch's ONNX exporter refuses as they stand, and stock models that have them."""

from __future__ import annotations

import logging
import warnings
from typing import Any

import pytest
import torch
from torch import nn

import optin_fx as ofx
from optin_fx.errors import LoweringError
from optin_fx.lowering import lower
from optin_fx.lowering.onnx_replacing import attention, exportable
from optin_fx.testing import zoo

pytest.importorskip("onnxruntime")


@pytest.mark.parametrize("name", ["gemma2", "xlnet", "hiera_timm", "twins_svt", "deepseek_v3"])
def test_a_stock_model_exports_pruned(name: str) -> None:
    """As the dense one does: `tools/zoo.py --onnx` exports both."""
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    program = zoo.get(name).program()
    engine = lower(ofx.rewrite(program, ofx.random_plan(program, seed=1)), "onnxruntime:cpu")  # runs onnx.checker, too
    assert engine.closeness is not None
    assert engine.closeness.max_rel < 2e-5


ATTENTIONS: dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...] | None, bool]] = {
    "two": ((5, 8), (7, 8), None, False),
    "three": ((2, 5, 8), (2, 7, 8), (5, 7), False),
    "three, a mask for each": ((2, 5, 8), (2, 7, 8), (2, 5, 7), False),
    "five": ((2, 3, 4, 5, 8), (2, 3, 4, 7, 8), None, False),
    "five, a mask for each head": ((2, 3, 4, 5, 8), (2, 3, 4, 7, 8), (4, 1, 7), False),
    "five, a mask for each window": ((2, 3, 4, 5, 8), (2, 3, 4, 7, 8), (3, 1, 5, 7), False),
    "five, keys that broadcast": ((2, 3, 4, 5, 8), (1, 3, 4, 7, 8), (2, 1, 1, 5, 7), False),
    "five, grouped queries": ((2, 3, 4, 5, 8), (2, 3, 2, 7, 8), None, True),
    "six": ((2, 1, 3, 4, 5, 8), (2, 2, 3, 4, 7, 8), None, False),
}


@pytest.mark.parametrize("case", ATTENTIONS.values(), ids=ATTENTIONS)
def test_attention_of_any_rank_is_that_of_four(case: tuple[Any, ...]) -> None:
    torch.manual_seed(0)
    query, key, mask, grouped = case
    q, k, v = torch.randn(query), torch.randn(key), torch.randn(*key[:-1], 6)
    m = None if mask is None else torch.randn(mask)
    wanted = nn.functional.scaled_dot_product_attention(q, k, v, m, scale=0.3, enable_gqa=grouped)
    torch.testing.assert_close(attention(q, k, v, m, scale=0.3, enable_gqa=grouped), wanted)


def test_a_program_without_such_ops_is_left_as_it_is(dense: ofx.Program) -> None:
    assert exportable(dense) is dense


class Experts(nn.Module):
    def __init__(self, op: str) -> None:
        super().__init__()
        self.op, self.weight = op, nn.Parameter(torch.randn(3, 8, 8))

    def forward(self, x: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
        if self.op == "torch":
            return nn.functional.grouped_mm(x, self.weight, offs=ends)
        import transformers.integrations.moe  # noqa: F401  registers the op

        rows: torch.Tensor = torch.ops.transformers.grouped_mm_fallback(x, self.weight, ends)
        return rows


@pytest.mark.parametrize("op", ["torch", "transformers"])
def test_rows_sorted_by_expert(op: str) -> None:
    """Each expert multiplies its own rows and no others, be they none or all."""

    def ends(*numbers: int) -> torch.Tensor:
        return torch.tensor(numbers, dtype=torch.int32)

    program = ofx.trace(Experts(op), (torch.randn(6, 8), ends(2, 2, 6)), dynamic_shapes=({0: torch.export.Dim("rows", min=6)}, None))
    engine = lower(program, "onnxruntime:cpu")
    assert engine.info()["ops"]["MatMul"] == 3
    for case in (ends(0, 0, 9), ends(9, 9, 9), ends(1, 2, 9)):
        x = torch.randn(9, 8)
        torch.testing.assert_close(engine(x, case), program(x, case), rtol=1e-4, atol=1e-5)
    if op == "transformers":  # it promises zeros behind the last row of the last expert; torch promises nothing
        assert not engine(torch.randn(9, 8), ends(1, 2, 4))[4:].any()


def test_a_form_of_the_op_that_is_not_translated_is_refused() -> None:
    """Matrices of one size for all experts: torch's op takes other operands then, and must not be taken for the other."""

    class Columns(nn.Module):
        def forward(self, x: torch.Tensor, y: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
            return nn.functional.grouped_mm(x, y, offs=ends)

    ends = torch.tensor([4, 8], dtype=torch.int32)
    program = ofx.trace(Columns(), (torch.randn(16, 8), torch.randn(8, 16), ends), dynamic_shapes={})
    with pytest.raises(LoweringError, match=r"the ONNX exporter refuses the program: Grouped matmul with offsets") as error:
        lower(program, "onnx")
    assert "test_onnx_forms.py:" in str(error.value)


class Lengths(nn.Module):
    """Numbers that follow from sizes, among tensors."""

    def forward(self, x: torch.Tensor) -> dict[str, Any]:
        return {"length": x.shape[1], "sum": x.sum(1), "half": (x.shape[1] + 1) // 2 + x.shape[0], "twice": torch.cat([x, x], 1), "two": 2}


@pytest.mark.parametrize("target", ["onnxruntime:cpu", "eager"])
def test_numbers_that_follow_from_sizes_come_back(target: str, tmp_path: Any) -> None:
    sizes = {0: torch.export.Dim("batch", max=64), 1: torch.export.Dim("length", max=64)}
    program = ofx.trace(Lengths(), (torch.randn(2, 6, 3),), dynamic_shapes=(sizes,))
    engine = lower(program, target)
    for found in (engine, ofx.lowering.load_engine(engine.save(tmp_path / "lengths"))):
        output = found(torch.ones(5, 9, 3))
        assert {key: value for key, value in output.items() if isinstance(value, int)} == {"length": 9, "half": 10, "two": 2}
        assert output["sum"].tolist() == [[9.0] * 3] * 5
        assert output["twice"].shape == (5, 18, 3)


def test_a_number_that_sizes_do_not_give_is_refused() -> None:
    class Counted(nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, int]:
            return x, x.nonzero().shape[0]

    program = ofx.trace(Counted(), (torch.ones(2, 3, dtype=torch.long),))
    with pytest.raises(LoweringError) as error:
        lower(program, "onnx")
    assert str(error.value).startswith("output_1 is a symbolic SymInt, u0, that the sizes of the inputs do not give\n")

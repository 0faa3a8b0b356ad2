"""Calibration data: what is accepted, and the exact text of every refusal."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import optin_fx as ofx
from optin_fx.data import Batch, batches_of, rows, several, take
from optin_fx.errors import DataError


class Named(nn.Module):
    """Two inputs by name, one of them of another dtype."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.out = nn.Embedding(11, 4), nn.Linear(4, 3)

    def forward(self, ids: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return self.out((self.table(ids) * weight.unsqueeze(-1)).sum(1))


IDS, WEIGHT = torch.randint(0, 11, (2, 5)), torch.rand(2, 5)


@pytest.fixture(scope="module")
def named() -> ofx.Program:
    return ofx.trace(Named(), (), {"ids": IDS, "weight": WEIGHT})


@pytest.fixture(scope="module")
def single() -> ofx.Program:
    return ofx.trace(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)), (torch.rand(2, 4),))


def test_what_counts_as_a_batch(named: ofx.Program, single: ofx.Program) -> None:
    x = torch.rand(3, 4)
    for data in (x, [x], [(x,)], [[x]], [{"input": x}], [Batch((x,))], iter([x])):
        (batch,) = batches_of(single, data, needed_for="test")
        assert torch.equal(batch.args[0], x)
        assert rows(batch) == 3
    (batch,) = batches_of(named, [{"ids": IDS, "weight": WEIGHT, "labels": torch.tensor([1, 2])}], needed_for="test")
    assert set(batch.kwargs) == {"ids", "weight"}
    assert batch.labels.tolist() == [1, 2]


def test_a_tensor_of_samples_is_cut_into_batches(single: ofx.Program) -> None:
    x = torch.rand(70, 4)
    found = batches_of(single, x, needed_for="test")
    assert [rows(batch) for batch in found] == [32, 32, 6]
    assert torch.equal(torch.cat([batch.args[0] for batch in found]), x)
    fixed = ofx.trace(nn.Linear(4, 2), (torch.rand(2, 4),), dynamic_shapes=({},))
    assert [rows(batch) for batch in batches_of(fixed, x[:7], needed_for="test")] == [2, 2, 2]
    assert "the model takes 2x4" in refusal(fixed, x[:1])


@pytest.mark.parametrize(
    ("count", "sizes"), [(1, [1]), (3, [3]), (4, [2, 2]), (7, [2, 2, 3]), (64, [16] * 4), (200, [33, 33, 34, 33, 33, 34])]
)
def test_an_only_batch_is_cut_where_some_is_held_out(single: ofx.Program, count: int, sizes: list[int]) -> None:
    x = torch.rand(count, 4)
    found = several(single, [Batch((x,))])
    assert [rows(batch) for batch in found] == sizes
    assert torch.equal(torch.cat([batch.args[0] for batch in found]), x)
    assert several(single, found) == found
    fixed = ofx.trace(nn.Linear(4, 2), (torch.rand(count, 4),), dynamic_shapes=({},))
    assert len(several(fixed, [Batch((x,))])) == 1


def test_rows_are_taken_together(named: ofx.Program) -> None:
    (batch,) = batches_of(named, [{"ids": IDS, "weight": WEIGHT, "labels": torch.tensor([1, 2])}], needed_for="test")
    one = take(batch, 1, 2)
    assert torch.equal(one.kwargs["ids"], IDS[1:])
    assert one.labels.tolist() == [2]


def refusal(program: ofx.Program, data: Any) -> str:
    with pytest.raises(DataError) as caught:
        batches_of(program, data, needed_for="score-fisher")
    return str(caught.value)


def test_no_data(single: ofx.Program) -> None:
    assert refusal(single, None) == (
        "score-fisher needs calibration data\n"
        "  fix pass data=batches (--data in the shell), an iterable of example inputs (tensor, tuple or dict)"
    )
    assert refusal(single, []) == (
        "the calibration data is empty\n  so  score-fisher has nothing to look at\n"
        "  fix pass at least one batch; an iterator can be read only once"
    )


def test_one_batch_in_place_of_many(named: ofx.Program) -> None:
    assert refusal(named, {"ids": IDS, "weight": WEIGHT}) == "data is one batch, not an iterable of batches\n  fix pass data=[batch]"


def test_other_inputs(named: ofx.Program, single: ofx.Program) -> None:
    assert refusal(named, [{"ids": IDS}]) == (
        "the batch has other inputs than the model was traced with\n"
        "  at  batch 0: 0 positional, ids by name; the model: 0 positional, ids, weight by name\n"
        "  fix give each batch just the inputs that ofx.trace was given"
    )
    assert "batch 1: 2 positional" in refusal(single, [torch.rand(2, 4), (torch.rand(2, 4), torch.rand(2, 4))])


def test_shapes_and_dtypes(named: ofx.Program, single: ofx.Program) -> None:
    assert refusal(single, [torch.rand(2, 4), torch.rand(2, 5)]) == (
        "input has shape 2x5, the model takes anyx4\n  at  batch 1\n  fix reshape the batch, or trace with dynamic_shapes that allow it"
    )
    assert refusal(single, [torch.rand(2, 4).double()]) == (
        "input has dtype torch.float64, the model takes torch.float32\n  at  batch 0\n  fix cast it: input.to(torch.float32)"
    )
    assert refusal(single, ["text"]) == "a batch is a str\n  at  batch 0\n  fix use a tensor, a tuple, a dict or optin_fx.Batch"
    assert "weight has dtype torch.int64" in refusal(named, [{"ids": IDS, "weight": IDS}])

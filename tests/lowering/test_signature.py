"""How a model is called, as data."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import nn

import optin_fx as ofx
from optin_fx.errors import LoweringError
from optin_fx.lowering import Signature
from optin_fx.testing import zoo


def test_names_sizes_and_bounds(structured: ofx.Program) -> None:
    signature = Signature.of(structured)
    assert [(leaf.name, leaf.dtype, leaf.sizes) for leaf in signature.inputs] == [
        ("batch_x", "float32", ("batch", 4, 8)),
        ("scale", "float32", ("batch",)),
        ("flag", None, ()),
    ]
    assert [(leaf.name, leaf.dtype, leaf.sizes) for leaf in signature.outputs] == [
        ("hidden", "float32", ("batch", 4, 8)),
        ("none", None, ()),
        ("pair_0", "float32", ("batch", 8)),
        ("pair_1", "float32", ("batch", 4, 8)),
        ("best", "int64", ("batch",)),
    ]
    assert signature.bounds == {"batch": (0, 16)}


def test_survives_json(structured: ofx.Program) -> None:
    signature = Signature.of(structured)
    assert Signature.from_dict(json.loads(json.dumps(signature.to_dict()))) == signature


def test_flatten_and_unflatten_are_each_other_s_inverse(structured: ofx.Program, call: Any) -> None:
    signature = Signature.of(structured)
    args, kwargs = call(5)
    tensors = signature.flatten(args, kwargs)
    again = signature.call(tensors)
    assert again[1]["flag"] is True
    assert torch.equal(again[0][0]["x"], args[0]["x"])
    outputs = [torch.zeros(1) for _ in signature.tensor_outputs]
    structure = signature.unflatten(outputs, tensors)
    assert structure["none"] is None
    assert isinstance(structure["pair"], tuple)
    assert structure["best"] is outputs[3]


def test_positions_and_keywords_are_interchangeable(structured: ofx.Program, call: Any) -> None:
    signature = Signature.of(structured)
    (batch,), kwargs = call(5)
    by_keyword = signature.flatten((), {"flag": True, "scale": kwargs["scale"], "batch": batch})
    by_position = signature.flatten((batch, kwargs["scale"]), {"flag": True})
    assert all(torch.equal(a, b) for a, b in zip(by_keyword, by_position, strict=True))


def test_resized_repeats_rows(structured: ofx.Program) -> None:
    args, kwargs = Signature.of(structured).resized(structured.args, structured.kwargs, {"batch": 5})
    assert args[0]["x"].shape == (5, 4, 8)
    assert torch.equal(args[0]["x"][2], structured.args[0]["x"][0])
    assert kwargs["scale"].shape == (5,)


def test_derived_sizes_and_chosen_names() -> None:
    class Twice(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cat([x, x], 1)

    length = torch.export.Dim("length", min=2, max=64)
    program = ofx.trace(Twice(), (torch.randn(2, 6),), dynamic_shapes=({1: length},))
    assert Signature.of(program).inputs[0].sizes == (2, "x_dim1")
    signature = Signature.of(program, {"x": {1: "length"}})
    assert signature.inputs[0].sizes == (2, "length")
    assert signature.outputs[0].sizes == (2, "2*length")
    assert signature.bounds == {"length": (2, 64)}
    with pytest.raises(LoweringError) as error:
        Signature.of(program, {"y": {1: "length"}})
    assert str(error.value) == "dim_names speaks of an input 'y' that the program does not have\n  fix use one of x"


def wrong_calls() -> list[Any]:
    x, scale = torch.randn(3, 4, 8), torch.rand(3)
    fix = "\n  fix call the engine as the model was called when it was traced"
    return [
        pytest.param(
            ({"x": x},), {"flag": True},
            "the call has 1 positional inputs and keywords ['flag'], but the program was traced with 1 and ['flag', 'scale']\n"
            f"  so  the inputs cannot be matched{fix}",
            id="missing keyword",
        ),
        pytest.param(
            ({"y": x},), {"flag": True, "scale": scale},
            "args.0 is a dict with 1 entries, the program was traced with a dict with 1"
            f": its keys are ['y'] in place of ['x']{fix}",
            id="wrong key",
        ),
        pytest.param(
            ([x],), {"flag": True, "scale": scale},
            f"args.0 is a list with 1 entries, the program was traced with a dict with 1{fix}",
            id="wrong container",
        ),
        pytest.param(
            ({"x": x},), {"flag": False, "scale": scale},
            "input flag is False, but the program was traced with True\n  so  that value is part of the graph\n"
            "  fix trace the model again with the value that you need",
            id="baked value",
        ),
        pytest.param(
            ({"x": x.double()},), {"flag": True, "scale": scale},
            "input batch_x has dtype float64, the engine takes float32\n  fix convert it with .to(torch.float32)",
            id="dtype",
        ),
        pytest.param(
            ({"x": x},), {"flag": True, "scale": torch.rand(2)},
            "input scale has shape [2], the engine takes [batch=3]\n"
            "  fix pass inputs of the traced sizes, or trace with more dynamic dims",
            id="rows differ",
        ),
        pytest.param(
            ({"x": x[:, :3]},), {"flag": True, "scale": scale},
            "input batch_x has shape [3, 3, 8], the engine takes [batch=3, 4, 8]\n"
            "  fix pass inputs of the traced sizes, or trace with more dynamic dims",
            id="static size",
        ),
        pytest.param(
            ({"x": 1},), {"flag": True, "scale": scale},
            "input batch_x is a int, not a tensor\n  fix pass a float32 tensor",
            id="no tensor",
        ),
        pytest.param(
            ({"x": torch.randn(17, 4, 8)},), {"flag": True, "scale": torch.rand(17)},
            "input batch_x has batch=17, the engine takes 0 to 16\n"
            "  fix pass inputs within those bounds, or trace with wider ones",
            id="bounds",
        ),
    ]  # fmt: skip


@pytest.mark.parametrize(("args", "kwargs", "text"), wrong_calls())
def test_wrong_calls_say_what_is_wrong(structured: ofx.Program, args: Any, kwargs: Any, text: str) -> None:
    with pytest.raises(LoweringError) as error:
        Signature.of(structured).flatten(args, kwargs)
    assert str(error.value) == text


def test_sizes_that_a_pruned_program_has_in_numbers_are_numbers() -> None:
    pytest.importorskip("transformers")
    dense = zoo.get("gpt2").program()
    small = ofx.rewrite(dense, ofx.random_plan(dense, keep=0.5, seed=1))
    caches = [leaf for leaf in Signature.of(small).tensor_outputs if leaf.name.startswith("past_key_values")]
    assert [[type(size) for size in leaf.sizes] for leaf in caches] == [[str, int, str, int]] * 4

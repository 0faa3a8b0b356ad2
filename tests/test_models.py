"""Model specs: every form, and what a wrong one says."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

import optin_fx as ofx
from optin_fx.errors import LoadError, MissingExtra
from optin_fx.models import Sizes, find_model, load_weights, read_model


def small_net() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A user's module in the current folder, which is not on the search path."""
    (tmp_path / "my_models_for_test.py").write_text(
        "import torch\n"
        "from torch import nn\n"
        "def plain(): return nn.Linear(4, 2)\n"
        "def with_args(): return nn.Linear(4, 2), (torch.ones(3, 4),)\n"
        "def with_tensor(): return nn.Linear(4, 2), torch.ones(3, 4)\n"
        "def with_kwargs(): return nn.Linear(4, 2), (), {'input': torch.ones(3, 4)}\n"
        "def wrong(): return {'model': nn.Linear(4, 2)}\n"
        "model = nn.Linear(4, 2)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield "my_models_for_test"
    sys.modules.pop("my_models_for_test", None)


def test_a_saved_program(tmp_path: Path) -> None:
    ofx.trace(small_net(), (torch.ones(2, 6),)).save(tmp_path / "model.pt2")
    program = read_model(str(tmp_path / "model.pt2"))
    assert program(torch.ones(5, 6)).shape == (5, 3)


@pytest.mark.parametrize("factory", ["with_args", "with_tensor", "with_kwargs"])
def test_a_factory_with_example_inputs(module: str, factory: str) -> None:
    source = find_model(f"{module}:{factory}", Sizes())
    inputs = [*source.args, *(source.kwargs or {}).values()]
    assert [tuple(tensor.shape) for tensor in inputs] == [(3, 4)]
    assert len(read_model(f"{module}:{factory}").input_names) == 1


@pytest.mark.parametrize("name", ["plain", "model"])
def test_a_model_without_example_inputs(module: str, name: str) -> None:
    source = find_model(f"{module}:{name}", Sizes())
    assert isinstance(source.model, nn.Linear)
    assert source.args == ()


def test_what_a_factory_may_return(module: str) -> None:
    with pytest.raises(LoadError) as caught:
        find_model(f"{module}:wrong", Sizes())
    assert str(caught.value) == (
        "the factory returned dict\n  at  my_models_for_test:wrong\n  fix return model, (model, args) or (model, args, kwargs)"
    )


def test_a_misspelt_factory(module: str) -> None:
    with pytest.raises(LoadError) as caught:
        find_model(f"{module}:with_arg", Sizes())
    assert str(caught.value) == (
        "module 'my_models_for_test' has no 'with_arg'\n  at  my_models_for_test:with_arg\n  fix it has with_args, with_kwargs, with_tensor"
    )


def test_no_such_module() -> None:
    with pytest.raises(LoadError) as caught:
        find_model("no_such_package.models:make", Sizes())
    assert str(caught.value) == (
        "no module named 'no_such_package'\n  at  no_such_package.models:make\n"
        "  fix install its package, or run in the folder that holds it"
    )


def test_a_broken_import_inside_the_users_module_is_shown_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_for_test.py").write_text("import a_package_that_is_not_there\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(ModuleNotFoundError, match="a_package_that_is_not_there"):
        find_model("broken_for_test:make", Sizes())


@pytest.mark.parametrize("spec", ["nothing", "C:\\model", "a/b:c", "timm:"])
def test_not_a_model(spec: str) -> None:
    with pytest.raises(LoadError) as caught:
        find_model(spec, Sizes())
    assert str(caught.value) == (f"not a model\n  at  {spec}\n  fix give model.pt2, package.module:factory, timm:NAME or hf:NAME_OR_FOLDER")


def test_no_such_file() -> None:
    with pytest.raises(LoadError) as caught:
        read_model("missing.pt2")
    assert str(caught.value) == "no such file\n  at  missing.pt2\n  fix check the path; programs end in .pt2"


def test_timm() -> None:
    pytest.importorskip("timm")
    source = find_model("timm:resnet18", Sizes(batch=2, image=64, weights="random"))
    assert [tuple(tensor.shape) for tensor in source.args] == [(2, 3, 64, 64)]


def test_timm_names_that_look_alike() -> None:
    pytest.importorskip("timm")
    with pytest.raises(LoadError) as caught:
        find_model("timm:resnet_18", Sizes(weights="random"))
    assert str(caught.value).startswith(
        "timm cannot make it: Unknown model (resnet_18)\n  at  timm:resnet_18\n  fix names that look alike: "
    )
    assert "resnet18" in str(caught.value)


@pytest.mark.parametrize(("prefix", "package", "extra"), [("timm", "timm", "timm"), ("hf", "transformers", "hf")])
def test_missing_extra(monkeypatch: pytest.MonkeyPatch, prefix: str, package: str, extra: str) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtra) as caught:
        find_model(f"{prefix}:anything", Sizes())
    assert str(caught.value) == (
        f"{prefix}:anything needs the package '{package}', which is not installed\n  fix pip install 'optin-fx[{extra}]'"
    )


TINY = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}


@pytest.mark.parametrize(
    ("kind", "options", "inputs"),
    [
        ("bert", {**TINY, "vocab_size": 120}, {"input_ids": (2, 7), "attention_mask": (2, 7)}),
        ("llama", {**TINY, "vocab_size": 120, "num_key_value_heads": 1}, {"input_ids": (2, 7), "attention_mask": (2, 7)}),
        ("vit", {**TINY, "image_size": 32, "patch_size": 16}, {"pixel_values": (2, 3, 32, 32)}),
        (
            "t5",
            {"vocab_size": 120, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_heads": 2},
            {"input_ids": (2, 7), "attention_mask": (2, 7), "decoder_input_ids": (2, 7)},
        ),
        (
            "whisper",
            {
                "vocab_size": 120, "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
                "decoder_attention_heads": 2, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "num_mel_bins": 8, "max_source_positions": 10,
                "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1,
            },
            {"input_features": (2, 8, 20), "decoder_input_ids": (2, 7)},
        ),
    ],
)  # fmt: skip
def test_hf_folder(tmp_path: Path, kind: str, options: dict[str, object], inputs: dict[str, tuple[int, ...]]) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.AutoConfig.for_model(kind, **options)
    transformers.AutoModel.from_config(config).save_pretrained(tmp_path)
    source = find_model(f"hf:{tmp_path}", Sizes(batch=2, length=7))
    assert {name: tuple(tensor.shape) for name, tensor in (source.kwargs or {}).items()} == inputs
    assert isinstance(source.model, nn.Module)
    with torch.no_grad():
        source.model(**(source.kwargs or {}))


def test_hf_name_without_a_connection() -> None:
    pytest.importorskip("transformers")
    with pytest.raises(LoadError) as caught:
        find_model("hf:nobody/no-such-model-here", Sizes())
    assert caught.value.at == "hf:nobody/no-such-model-here"
    assert str(caught.value).endswith(
        "  fix check the name; without a connection give a local folder (hf:FOLDER), --weights FILE, or --weights random"
    )


def test_weights_by_name_and_by_order(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    model, other = small_net(), small_net()
    torch.save(other.state_dict(), tmp_path / "by_name.pt")
    renamed = {f"{number:02}": tensor for number, tensor in enumerate(other.state_dict().values())}
    save_file(renamed, tmp_path / "by_order.safetensors")
    for file in ("by_name.pt", "by_order.safetensors"):
        model = small_net()
        load_weights(model, tmp_path / file)
        assert all(torch.equal(mine, theirs) for mine, theirs in zip(model.parameters(), other.parameters(), strict=True))


def test_weights_that_do_not_fit(tmp_path: Path) -> None:
    torch.save(nn.Linear(6, 9).state_dict(), tmp_path / "w.pt")
    with pytest.raises(LoadError) as caught:
        load_weights(small_net(), tmp_path / "w.pt")
    assert str(caught.value) == (
        f"2 tensors in the file, 4 in the model; the first that differs in shape: 0.weight\n  at  {tmp_path}/w.pt\n"
        "  so  the weights fit neither by name nor by order\n  fix give the state dict of this very model"
    )


def test_a_file_that_is_no_state_dict(tmp_path: Path) -> None:
    torch.save([1, 2], tmp_path / "w.pt")
    with pytest.raises(LoadError) as caught:
        load_weights(small_net(), tmp_path / "w.pt")
    assert str(caught.value) == f"not a state dict: list\n  at  {tmp_path}/w.pt\n  fix save it with torch.save(model.state_dict(), path)"

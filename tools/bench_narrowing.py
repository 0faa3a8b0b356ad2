"""What it saves not to compute rows that nothing reads, with every unit in place: `python tools/bench_narrowing.py`.

Classifiers that read one token, at their published sizes, weights random, each beside its narrowed self, runs interleaved on one thread.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from importlib import import_module

import torch
from demo_table import table
from latency.models import MINILM, TOKENS, Made, texts, timm

import optin_fx as ofx

ROWS = 8


def minilm() -> Made:
    """transformers' classifier on a BERT of MiniLM's shape."""
    transformers = import_module("transformers")
    return transformers.BertForSequenceClassification(transformers.BertConfig(**MINILM)), (), texts(ROWS, TOKENS)


def vit(name: str) -> Made:
    """A timm classifier on eight pictures."""
    model, _, kwargs = timm(name)
    return model, (torch.randn(ROWS, 3, 224, 224),), kwargs


MODELS: dict[str, Callable[[], Made]] = {
    "minilm": minilm,
    "vit-tiny": lambda: vit("vit_tiny_patch16_224"),
    "deit-s": lambda: vit("deit_small_patch16_224"),
}


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=list(MODELS), help=f"of {', '.join(MODELS)}; without, all")
    parser.add_argument("--target", default="onnxruntime:cpu")
    options = parser.parse_args()
    unknown = [name for name in options.models if name not in MODELS]
    if unknown:
        parser.error(f"no model is called {unknown[0]!r}: choose of {', '.join(MODELS)}")
    lines = [row(name, options.target) for name in options.models]
    print(table(["batch 8, one thread", "FLOPs saved", options.target], lines))


def row(name: str, target: str) -> list[str]:
    """A model's FLOPs saved and its speed-up with the 95 % interval."""
    torch.manual_seed(0)
    model, args, kwargs = MODELS[name]()
    dense = ofx.trace(model.eval(), args, kwargs)
    narrow = ofx.narrow(dense)
    saved = 1 - ofx.cost(narrow).flops / ofx.cost(dense).flops
    return [name, f"{saved:.1%}", str(ofx.measure(dense, narrow, target, threads=1).ratios[0])]


if __name__ == "__main__":
    main()

"""Side by side with torch-pruning: which stock models each tool prunes to half their widths, exactly, and at what price.

    python tools/bench_peers.py --write docs/results/peers.md

Neither tool is told anything about a model. Each run is a process of its own; results are kept in `--cache`, so that a run that is broken
off goes on. `peer_runs.py` says what each tool is asked to do.
"""

from __future__ import annotations

import importlib
import json
import logging
import warnings
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from peer_runs import TOOLS, attempt
from zoo import run

from optin_fx.testing import zoo

MODELS = (
    "resnet18", "resnet50", "resnext50", "vgg16_bn", "densenet121", "googlenet", "inception_v3", "mobilenet_v2", "mobilenet_v3",
    "efficientnet_b0", "regnetx", "regnety", "shufflenet_v2", "ghostnet", "convnext", "convnext_v2", "nfnet", "hrnet",
    "vit_timm", "vit", "swin", "segformer", "mlp_mixer", "levit", "mobilevit",
    "bert", "distilbert", "roberta", "gpt2", "llama", "t5", "whisper",
)  # fmt: skip
PAGE = """# Side by side with torch-pruning

Made by `python tools/bench_peers.py --write docs/results/peers.md` ({versions}).

{count} stock models from torchvision, timm and transformers, {widths} (fewer layers where the zoo has fewer), random
weights. Both tools get the model as it is and one batch of two example inputs, and nothing else: no list of heads, no list of layers to
leave alone, no wrapper. Both are asked for half of every width that they find, by magnitude.

* **built**: the tool's dependency analysis came to an end. **runs**: the smaller model runs on the same inputs, and its outputs have the
  shapes of the dense model's.
* **equal**: it computes what the dense model computes when the removed units are zeroed where they are read (relative difference at most
  1e-4). For torch-pruning these places are the input channels that its own groups name. Both tools run in float32 on one thread.
* **params**: what is left of them. **s**: seconds for analysis and pruning, without making the model; other work ran on the machine.
  **MB**: growth of peak memory meanwhile.
* torch-pruning is called as its documentation says for a magnitude pruner with a uniform ratio of 0.5. To be fair to it, layers whose
  output is an output of the model are found by running the model once, and ignored, as its documentation tells the user to do by hand,
  and all tensors are picked out of structured outputs. Exactness is no promise of its authors: it is meant to be followed by fine-tuning.

{table}

{summary}
"""


def main(
    names: Annotated[list[str] | None, typer.Argument(help="models of the zoo; a choice of about thirty without")] = None,
    cache: Annotated[Path, typer.Option(help="folder of results")] = Path("build/peers"),
    small: Annotated[bool, typer.Option("--small", help="test sizes")] = False,
    write: Annotated[Path | None, typer.Option(help="Markdown file for the table")] = None,
) -> None:
    """Run both tools on every model."""
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    for library in ("timm", "torchvision", "transformers", "torch_pruning", "torch.export", "torch._dynamo"):
        importlib.import_module(library)
    cache.mkdir(parents=True, exist_ok=True)
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for name in names or [name for name in MODELS if zoo.select(name)]:
        found[name] = {}
        for tool in TOOLS:
            path = cache / f"{name}-{tool}.json"
            if not path.is_file():
                run(path, partial(attempt, tool, zoo.get(name), small=small))
            found[name][tool] = json.loads(path.read_text())
            print(" | ".join([name, tool, *cells(found[name][tool])]), flush=True)
    if write is not None:
        write.parent.mkdir(parents=True, exist_ok=True)
        write.write_text(page(found, "at test sizes" if small else "at the widths of the published models"))


def cells(facts: dict[str, Any]) -> list[str]:
    """built, runs, equal, params, s, MB."""
    if "failed" in facts:
        return [f"no: {facts['failed'][:60]}", "", "", "", "", ""]
    error = facts.get("error")
    equal = "" if error is None else f"{'yes' if error <= 1e-4 else 'no'} ({error:.0e})"
    runs = "yes" if facts.get("runs") else f"no: {facts.get('reason', '')[:60]}"
    return ["yes", runs, equal, f"{facts['params']:.0%}", f"{facts['seconds']:.1f}", f"{facts['megabytes']:.0f}"]


def page(found: dict[str, dict[str, dict[str, Any]]], widths: str) -> str:
    """The whole page."""
    from importlib.metadata import version

    columns = ("built", "runs", "equal", "params", "s", "MB")
    heads = [f"{tool}: {columns[0]}" if i == 0 else column for tool in TOOLS for i, column in enumerate(columns)]
    lines = [["model", *heads], ["---"] * (1 + len(heads))]
    lines += [[name, *(cell.replace("|", "/") for tool in TOOLS for cell in cells(tools[tool]))] for name, tools in found.items()]
    totals = []
    for tool in TOOLS:
        facts = [tools[tool] for tools in found.values()]
        built = sum("failed" not in f for f in facts)
        ran = sum(bool(f.get("runs")) for f in facts)
        equal = sum(f.get("error") is not None and f["error"] <= 1e-4 and f["params"] < 1 for f in facts)
        totals.append(f"* {tool}: builds {built}, runs {ran}, smaller and equal {equal}, of {len(facts)}.")
    versions = ", ".join(f"{package} {version(package)}" for package in ("torch", "torch-pruning", "transformers", "timm"))
    table = "\n".join(f"| {' | '.join(row)} |" for row in lines)
    return PAGE.format(versions=versions, count=len(found), widths=widths, table=table, summary="\n".join(totals))


if __name__ == "__main__":
    typer.run(main)

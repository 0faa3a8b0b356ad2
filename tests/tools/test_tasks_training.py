"""The training loop on a toy, and the command that runs it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import train_zoo
from tasks import cache, training
from torch import Tensor, nn

RECIPE = training.Recipe(epochs=6, rate=0.05, batch=8, threads=1)


def trained(seed: int = 0) -> tuple[dict[str, Tensor], list[float]]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.1), nn.Linear(8, 2))
    inputs = torch.randn(40, 4, generator=torch.Generator().manual_seed(1))
    labels = (inputs[:, 0] > 0).long()
    losses: list[float] = []

    def loss(model: nn.Module, chosen: Tensor) -> Tensor:
        value = nn.functional.cross_entropy(model(inputs[chosen]), labels[chosen])
        losses.append(value.item())
        return value

    recipe = training.Recipe(**{**vars(RECIPE), "seed": seed})
    assert training.fit(model, len(inputs), loss, recipe) >= 0
    assert not model.training
    return model.state_dict(), losses


def test_fit_learns_and_is_a_function_of_the_seed() -> None:
    (first, losses), (second, _), (third, _) = trained(), trained(), trained(seed=1)
    assert len(losses) == 30
    assert losses[-1] < losses[0] / 2
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(first[name], third[name]) for name in first)


def test_batches_cover_all_once() -> None:
    made = list(training.batches(20, 8, torch.Generator().manual_seed(0)))
    assert [len(batch) for batch in made] == [8, 8]
    assert len(set(torch.cat(made).tolist())) == 16


@pytest.mark.parametrize("cosine", [True, False])
def test_rate_rises_then_falls_to_zero(cosine: bool) -> None:
    recipe = training.Recipe(epochs=1, rate=1, warmup=0.1, cosine=cosine)
    shares = [training.scale(step, 100, recipe) for step in range(101)]
    assert shares[:10] == sorted(shares[:10])
    assert max(shares) == shares[9] == shares[10] == 1
    assert shares[10:] == sorted(shares[10:], reverse=True)
    assert shares[100] == pytest.approx(0)


def test_biases_and_norms_do_not_decay() -> None:
    decayed, free = training.groups(nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3)), 0.1)
    assert [len(group["params"]) for group in (decayed, free)] == [1, 3]  # type: ignore[arg-type]
    assert free["weight_decay"] == 0


class Toy:
    """Stands for a task; training it writes a checkpoint at once."""

    needs_training = True

    def __init__(self, name: str) -> None:
        self.name = name

    def model(self) -> Any:
        return cache.load_checkpoint(self.name)

    def evaluate(self, run: Any) -> dict[str, float]:
        return {"accuracy": 0.75}

    def train(self) -> dict[str, Any]:
        facts = {"seconds": 2, "dense": {"accuracy": 0.5}}
        cache.save_checkpoint(self.name, {"x": torch.zeros(1)}, facts)
        return facts


@pytest.fixture
def toys(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(train_zoo, "NAMES", ("a", "b"))
    monkeypatch.setattr(train_zoo, "task", Toy)


def test_only_what_is_missing_is_trained(empty_cache: Path, toys: Any, capsys: pytest.CaptureFixture[str]) -> None:
    def lines(*arguments: str) -> list[str]:
        assert train_zoo.main(arguments) == 0
        return [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]

    assert lines("b") == ["b 2 s accuracy 0.5000"]
    assert lines() == ["a 2 s accuracy 0.5000", "b cached"]
    assert lines("--again", "a") == ["a 2 s accuracy 0.5000"]
    assert lines("--check") == ["a accuracy 0.7500", "b accuracy 0.7500"]


def test_unknown_and_missing(empty_cache: Path, toys: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        train_zoo.main(["weather"])
    assert "no task is called weather; choose from a, b" in capsys.readouterr().err
    assert train_zoo.main(["--check"]) == 1
    assert "fix python tools/train_zoo.py a" in capsys.readouterr().err

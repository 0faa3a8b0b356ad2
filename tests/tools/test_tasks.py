"""The offline tasks: evaluation with made-up predictions on made-up data; the real data where they are cached."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tasks import NAMES, NotCached, Task, cache, call, pick, task
from tasks.digits import DigitTask
from tasks.embeddings import Embeddings
from tasks.mnist_resnet import MnistResNet
from tasks.mnist_vit import MnistViT
from tasks.photos import Photos, renamed
from tasks.reviews import Reviews, targets
from tasks.spans import Spans, best, read, split, transferred
from tasks.task import answers, cut
from torch import Tensor

from optin_fx.errors import DataError

TASKS = [task(name) for name in NAMES]
EXPECTED = {"reviews": 0.83, "embeddings": 1, "photos": 1, "mnist-vit": 0.96, "mnist-resnet": 0.97, "spans": 0.8}


def one_hot(labels: Tensor, classes: int) -> Tensor:
    return torch.nn.functional.one_hot(labels, classes).float()


class Scripted:
    """Answers with prepared rows, batch after batch, whatever it is asked."""

    def __init__(self, *rows: Tensor) -> None:
        self.rows, self.at = rows, 0

    def __call__(self, *args: Tensor, **kwargs: Tensor) -> tuple[Tensor, ...]:
        size = len((*args, *kwargs.values())[0])
        self.at += size
        return tuple(rows[self.at - size : self.at] for rows in self.rows)


# -- the common part ---------------------------------------------------------------------------------------------------


def test_names() -> None:
    assert NAMES == ("reviews", "embeddings", "photos", "mnist-vit", "mnist-resnet", "spans")
    assert [one.name for one in TASKS] == list(NAMES)
    assert set(EXPECTED) == set(NAMES)


def test_unknown_name() -> None:
    with pytest.raises(DataError) as error:
        task("weather")
    assert str(error.value) == (
        "no task is called 'weather'\n  fix choose one of reviews, embeddings, photos, mnist-vit, mnist-resnet, spans"
    )


@pytest.mark.parametrize("one", TASKS, ids=NAMES)
def test_tasks_are_values(one: Task) -> None:
    assert one == task(one.name)
    assert hash(one) == hash(task(one.name))
    with pytest.raises(dataclasses.FrozenInstanceError):
        one.held_out = 3  # type: ignore[attr-defined]


@pytest.mark.parametrize("one", TASKS, ids=NAMES)
def test_missing_data_say_what_to_do(one: Task, empty_cache: Path) -> None:
    with pytest.raises(NotCached, match=r"python tools/fetch_data\.py"):
        one.calibration(4)


@pytest.mark.parametrize("name", ["reviews", "photos", "mnist-vit", "mnist-resnet", "spans"])
def test_missing_checkpoint_says_what_to_do(name: str, empty_cache: Path) -> None:
    with pytest.raises(NotCached, match=f"python tools/train_zoo.py {name}"):
        task(name).model()


def test_pick_unwraps_what_models_and_engines_return() -> None:
    value, other = torch.ones(2), torch.zeros(2)
    for output in ({"logits": value}, SimpleNamespace(logits=value), value, (value, other), [value], value.numpy()):
        assert torch.equal(pick(output, "logits")[0], value)
    assert [part.sum().item() for part in pick((value, other), "start_logits", "end_logits")] == [2, 0]
    with pytest.raises(TypeError, match="found 1 of 2"):
        pick(value, "start_logits", "end_logits")


def test_cut_and_answers_keep_order() -> None:
    inputs = {"x": torch.arange(5), "y": torch.arange(5) * 10}
    assert [batch["x"].tolist() for batch in cut(inputs, 2)] == [[0, 1], [2, 3], [4]]  # type: ignore[call-overload]
    (total,) = answers(lambda x, y: x + y, inputs, 2, "logits")
    assert total.tolist() == [0, 11, 22, 33, 44]
    assert call(lambda x: x + 1, (torch.tensor(1),)) == 2


# -- each task, on made-up data ----------------------------------------------------------------------------------------


def sides(one: Any) -> tuple[set[Any], set[Any]]:
    rest, held_out = split(one) if isinstance(one, Spans) else one.split()
    return set(rest), set(held_out)


SMALL: list[Any] = [
    Reviews(length=12, held_out=10),
    Embeddings(length=12, held_out=10),
    MnistResNet(held_out=10),
    Spans(length=60, held_out=12, held_out_documents=8),
]


@pytest.mark.parametrize("one", SMALL, ids=lambda one: one.name)
def test_splits_are_disjoint_and_stay(one: Any, tiny_cache: Path) -> None:
    rest, held_out = sides(one)
    assert rest
    assert held_out
    assert not rest & held_out
    assert sides(one) == (rest, held_out)


@pytest.mark.parametrize("one", SMALL, ids=lambda one: one.name)
def test_calibration_is_a_function_of_the_seed(one: Any, tiny_cache: Path) -> None:
    def values(seed: int) -> list[Tensor]:
        batches = one.calibration(10, seed, batch=4)
        assert len(batches) == 3
        return [torch.cat(parts) for parts in zip(*(b.values() if isinstance(b, dict) else b for b in batches), strict=True)]

    assert all(map(torch.equal, values(1), values(1)))
    assert not all(map(torch.equal, values(1), values(2)))
    labels = one.labels(10, 1, batch=4)
    if labels is not None:
        assert [len(part if isinstance(part, Tensor) else part[0]) for part in labels] == [4, 4, 2]


def test_reviews_evaluate(tiny_cache: Path) -> None:
    one = Reviews(length=12, held_out=10)
    labels = targets(one.split()[1])
    assert one.evaluate(Scripted(one_hot(labels, 2)), batch=4)["accuracy"] == 1
    wrong = one_hot(torch.cat([1 - labels[:3], labels[3:]]), 2)
    assert one.evaluate(Scripted(wrong), batch=4)["accuracy"] == pytest.approx(0.7)


def test_reviews_labels_belong_to_their_texts(tiny_cache: Path) -> None:
    one = Reviews(length=12, held_out=10)
    text = {tuple(one._encode([snippet])["input_ids"][0].tolist()): int(snippet.score > 0) for snippet in one.split()[0]}
    labels = one.labels(20, seed=3, batch=8)
    assert labels is not None
    for batch, expected in zip(one.calibration(20, seed=3, batch=8), labels, strict=True):
        assert isinstance(batch, dict)
        assert [text[tuple(row)] for row in batch["input_ids"].tolist()] == expected.tolist()  # type: ignore[union-attr]


def test_embeddings_evaluate(tiny_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def dense(input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        table = torch.randn(400, 8, generator=torch.Generator().manual_seed(0))
        return {"last_hidden_state": table[input_ids]}

    def padded(input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return dense(input_ids, attention_mask)["last_hidden_state"] + 5 * (1 - attention_mask)[..., None]

    def unrelated(input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return torch.randn(*input_ids.shape, 8)

    monkeypatch.setattr(Embeddings, "model", lambda self: dense)
    one = Embeddings(length=14, held_out=10)
    assert one.evaluate(dense) == pytest.approx({"cosine": 1, "spearman": 1})
    assert one.evaluate(padded) == pytest.approx({"cosine": 1, "spearman": 1}), "what padding says must not count"
    assert one.evaluate(unrelated)["cosine"] < 0.8
    with pytest.raises(DataError, match="has no labels"):
        one.loss(None, torch.zeros(1))


@pytest.mark.parametrize("one", [MnistResNet(held_out=10), MnistViT(held_out=10)], ids=lambda one: one.name)
def test_digits_evaluate(one: DigitTask, tiny_cache: Path) -> None:
    from tasks.digits import read as digits

    labels = digits()[1][one.split()[1]]
    assert one.evaluate(Scripted(one_hot(labels, 10)), batch=4)["accuracy"] == 1
    assert one.evaluate(Scripted(one_hot((labels + 1) % 10, 10)), batch=4)["accuracy"] == 0


def test_photos_evaluate(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dense = one_hot(torch.arange(8) % 4, 4)
    monkeypatch.setattr("tasks.photos.dense_logits", lambda one: dense)
    monkeypatch.setattr("tasks.photos.held_out_views", lambda one: torch.zeros(8, 3, 2, 2))
    assert Photos().evaluate(Scripted(dense), batch=3) == pytest.approx({"agreement": 1, "kl": 0})
    found = Photos().evaluate(Scripted(dense.roll(1, 1)), batch=3)
    assert found["agreement"] == 0
    assert found["kl"] > 0


def test_photos_refuse_weights_of_another_network() -> None:
    with pytest.raises(DataError, match=r"the published weights \(1 tensors\) do not fit timm's model \(1\)"):
        renamed({"a": torch.zeros(2)}, {"b": torch.zeros(3)})
    assert renamed({"a": torch.ones(2)}, {"b": torch.zeros(2)})["b"].sum() == 2


def test_spans_evaluate(tiny_cache: Path) -> None:
    one = SMALL[-1]
    reading = read(split(one)[1], one.length)
    starts, ends = one_hot(reading.first, one.length), one_hot(reading.last, one.length)
    assert one.evaluate(Scripted(starts, ends), batch=5) == {"f1": 1, "exact": 1}
    assert one.evaluate(Scripted(starts.flip(0), ends.flip(0)), batch=5)["exact"] < 1


def test_spans_answer_is_legal() -> None:
    # tokens:            [CLS] question [SEP] w0  w1a w1b  w2  w3  w4  w5 [SEP]
    words = torch.tensor([[-1, -1, -1, 0, 1, 1, 2, 3, 4, 5, -1]])
    starts, ends = torch.zeros(1, 11), torch.zeros(1, 11)
    starts[0, 1] = 9  # in the question
    starts[0, 5], ends[0, 6] = 2, 2
    assert best(starts, ends, words) == [(1, 2)]
    ends[0, 3] = 4  # before the start
    assert best(starts, ends, words)[0] != (1, 0)
    ends[0, 3], starts[0, 3], starts[0, 5], ends[0, 6], ends[0, 9] = 0, 3, 0, 0, 3  # six words are too many
    first, last = best(starts, ends, words)[0]
    assert last - first < 4


def test_distilbert_takes_over_bert_layers() -> None:
    transformers = pytest.importorskip("transformers")
    small = {"vocab_size": 20, "max_position_embeddings": 8}
    bert = transformers.BertModel(
        transformers.BertConfig(**small, hidden_size=8, num_hidden_layers=6, num_attention_heads=2, intermediate_size=16)
    ).eval()
    distil = transformers.DistilBertModel(transformers.DistilBertConfig(**small, dim=8, n_layers=4, n_heads=2, hidden_dim=16)).eval()
    distil.load_state_dict(transferred(bert.state_dict()))
    ids = torch.randint(20, (2, 6))
    with torch.no_grad():
        theirs = bert(ids, output_hidden_states=True).hidden_states
        ours = distil(ids, output_hidden_states=True).hidden_states
    torch.testing.assert_close(ours[0], theirs[0])
    torch.testing.assert_close(ours[1], theirs[1])


@pytest.mark.parametrize("one", [MnistResNet(), MnistViT()], ids=lambda one: one.name)
def test_digit_networks_export_with_a_free_batch(one: DigitTask) -> None:
    if one.name == "mnist-vit":
        pytest.importorskip("timm")
    model = one.bare().eval()
    program = torch.export.export(model, (torch.randn(2, 1, 28, 28),), dynamic_shapes=one.dynamic_shapes())
    pictures = torch.randn(5, 1, 28, 28)
    torch.testing.assert_close(program.module()(pictures), model(pictures))


# -- the real ones -----------------------------------------------------------------------------------------------------


def or_skip(make: Any) -> Any:
    try:
        return make()
    except NotCached as missing:
        pytest.skip(f"{missing.what}: {missing.fix}")


@pytest.mark.parametrize("one", TASKS, ids=NAMES)
def test_real_calibration_data(one: Task) -> None:
    (batch,) = or_skip(lambda: one.calibration(32))
    values = list(batch.values()) if isinstance(batch, dict) else list(batch)
    assert {len(value) for value in values} == {32}
    assert len(or_skip(lambda: one.calibration(100, seed=1, batch=40))) == 3
    if not isinstance(one, Photos):  # its two sides are lists of photographs: see test_photographs
        rest, held_out = sides(one)
        assert not rest & held_out


@pytest.mark.parametrize("one", TASKS, ids=NAMES)
def test_real_dense_model_is_as_good_as_it_should_be(one: Task) -> None:
    if one.needs_training:
        facts = or_skip(lambda: cache.load_checkpoint(one.name))[1]
        assert facts["dense"][one.metric] >= EXPECTED[one.name]
    args, kwargs = or_skip(one.example)
    model = or_skip(one.model)
    assert not model.training
    with torch.no_grad():
        output = model(*args, **kwargs)
    names = {"embeddings": ("last_hidden_state",), "spans": ("start_logits", "end_logits")}.get(one.name, ("logits",))
    assert all(torch.isfinite(value).all() and len(value) == 2 for value in pick(output, *names))
    if (labels := one.labels(2, batch=2)) is not None:
        assert one.loss(output, labels[0]).ndim == 0

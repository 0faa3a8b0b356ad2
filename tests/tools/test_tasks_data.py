"""What the tasks' data are made of: texts, questions, digits, views of photographs; and the measures."""

from __future__ import annotations

import math

import pytest
import torch
from tasks import archive, digits, metrics, passages, photographs

from optin_fx.errors import DataError

# -- texts -------------------------------------------------------------------------------------------------------------


def test_parse_reads_records_and_drops_repeats() -> None:
    lines = ["1_1\t1.5\tA fine film.\r\n", "\r\n", "2_1\t-2\tA fine film. \r\n", "2_2\t-0.25\twith\ta tab\r\n"]
    assert archive.parse(lines) == [archive.Snippet("A fine film.", 1.5, 1), archive.Snippet("with\ta tab", -0.25, 2)]


def test_parse_refuses_other_files() -> None:
    with pytest.raises(DataError) as error:
        archive.parse(["1\t0.5\tgood\n", "no tabs here\n"], "film.txt")
    assert str(error.value) == ("expected 3 tab-separated fields, found 1\n  at  film.txt:2\n  fix python tools/fetch_data.py --again")


def test_split_is_seeded_and_complete() -> None:
    rest, held_out = archive.split(range(50), 20)
    assert sorted(rest + held_out) == list(range(50))
    assert len(held_out) == 20
    assert archive.split(range(50), 20) == (rest, held_out)
    assert archive.split(range(50), 20, seed=1) != (rest, held_out)
    with pytest.raises(DataError, match="cannot hold out 50 of 50 items"):
        archive.split(range(50), 50)


def test_sample_has_no_repeats_and_grows_from_the_front() -> None:
    chosen = archive.sample(range(50), 30, seed=4)
    assert len(set(chosen)) == 30
    assert archive.sample(range(50), 10, seed=4) == chosen[:10]
    with pytest.raises(DataError) as error:
        archive.sample(range(5), 6, seed=0)
    assert str(error.value) == "cannot draw 6 of 5 items\n  so  no calibration data\n  fix ask for 1 to 5"


# -- questions ---------------------------------------------------------------------------------------------------------


def words(text: str) -> tuple[str, ...]:
    return tuple(passages.WORD.findall(text))


PASSAGE = words("Ten runners will compete in red suits and beards on Friday at noon.")


def test_ask_quotes_what_is_around() -> None:
    made = passages.ask(PASSAGE, 6, 8)
    assert made is not None
    assert made.answer == ("suits", "and", "beards")
    assert made.question == ("compete", "in", "red", "what", "on", "Friday", "at", "?")


def test_ask_refuses_what_has_no_clear_answer() -> None:
    assert passages.ask(PASSAGE, 1, 1) is None, "too little on the left"
    assert passages.ask(PASSAGE, 11, 11) is None, "too little on the right"
    assert passages.ask(words("a b c , d e f"), 3, 3) is None, "a sign is no answer"
    assert passages.ask(words("a b c x d e f y A b c z g h i"), 3, 3) is None, "its left side occurs twice"


def test_passages_keep_to_their_document() -> None:
    snippets = [archive.Snippet(f"word{i}.", 0, i // 3) for i in range(6)]
    assert passages.passages(snippets) == [("word0", ".", "word1", "."), ("word3", ".", "word4", ".")]


def test_questions_are_seeded_and_different() -> None:
    made = passages.questions([PASSAGE, PASSAGE[::-1]], 3, seed=0)
    assert made == passages.questions([PASSAGE, PASSAGE[::-1]], 3, seed=0)
    assert len({(one.passage, one.first, one.last) for one in made}) == len(made) == 6
    assert all(1 <= len(one.answer) <= passages.LONGEST for one in made)


# -- digits ------------------------------------------------------------------------------------------------------------


def test_digits_parse() -> None:
    pictures, labels = digits.parse(torch.tensor([[0.0] * 783 + [255.0, 7.0]]))
    assert pictures.shape == (1, 1, 28, 28)
    assert labels.tolist() == [7]
    assert pictures[0, 0, 0, 0].item() == pytest.approx(-digits.MEAN / digits.DEVIATION)
    assert pictures[0, 0, 27, 27].item() == pytest.approx((1 - digits.MEAN) / digits.DEVIATION)


def test_jitter_moves_a_little_and_fills_with_paper() -> None:
    pictures = torch.randn(4, 1, 28, 28)
    torch.testing.assert_close(digits.jitter(pictures, degrees=0, shift=0, zoom=0), pictures, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(digits.jitter(pictures), pictures, atol=1e-2)
    paper = torch.full((4, 1, 28, 28), -digits.MEAN / digits.DEVIATION)
    torch.testing.assert_close(digits.jitter(paper), paper)


# -- photographs -------------------------------------------------------------------------------------------------------


def test_no_photograph_serves_both_purposes() -> None:
    assert not set(photographs.CALIBRATION) & set(photographs.EVALUATION)


def test_views_stay_inside() -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        view = photographs.draw(640, 427, generator)
        left, top, right, bottom = view.box
        assert 0 <= left < right <= 640
        assert 0 <= top < bottom <= 427
        assert (right - left) * (bottom - top) >= 0.09 * 640 * 427
        assert 0.8 <= view.brightness <= 1.2
        assert 0.8 <= view.contrast <= 1.2


def test_render() -> None:
    image = pytest.importorskip("PIL.Image")
    ramp = image.linear_gradient("L").rotate(90).convert("RGB")  # dark to bright, across
    plain = photographs.render(ramp, photographs.View((0, 0, 256, 256), False, 1, 1), 16)
    mirrored = photographs.render(ramp, photographs.View((0, 0, 256, 256), True, 1, 1), 16)
    bright = photographs.render(ramp, photographs.View((0, 0, 256, 256), False, 1.2, 1), 16)
    assert plain.shape == (3, 16, 16)
    assert -1 <= plain.min() < -0.8
    assert 0.8 < plain.max() <= 1
    torch.testing.assert_close(mirrored, plain.flip(-1))
    torch.testing.assert_close(bright, (plain + 0.2).clamp(max=1))


def test_views_are_seeded(monkeypatch: pytest.MonkeyPatch) -> None:
    image = pytest.importorskip("PIL.Image")
    monkeypatch.setattr(photographs, "load", lambda name: image.effect_noise((60, 40), 80).convert("RGB"))
    photos = {name: photographs.load(name) for name in "ab"}
    monkeypatch.setattr(photographs, "load", photos.__getitem__)
    made = photographs.views("ab", 6, 8, seed=-1)
    assert torch.equal(made, photographs.views("ab", 6, 8, seed=-1))
    assert torch.equal(made[:4], photographs.views("ab", 4, 8, seed=-1))
    assert not torch.equal(made, photographs.views("ab", 6, 8, seed=0))


# -- measures ----------------------------------------------------------------------------------------------------------


def test_measures_on_known_values() -> None:
    logits = torch.tensor([[2.0, 1.0], [0.0, 3.0]])
    assert metrics.accuracy(logits, torch.tensor([0, 0])) == 0.5
    assert metrics.agreement(logits, logits * 9) == 1
    assert metrics.divergence(logits, logits + 5) == pytest.approx(0, abs=1e-9)
    half, most = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.75, 0.25]]).log()
    assert metrics.divergence(half, most) == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5))
    assert metrics.mean_cosine(torch.eye(2), torch.tensor([[2.0, 0.0], [3.0, 0.0]])) == pytest.approx(0.5)
    assert metrics.spearman(torch.tensor([1.0, 2, 3]), torch.tensor([5.0, 50, 51])) == pytest.approx(1)
    assert metrics.pair_similarities(torch.eye(3)).tolist() == [0, 0, 0]


def test_span_measures() -> None:
    assert metrics.span_f1(["Red", "suits"], ["red", "suits", "and"]) == pytest.approx(0.8)
    assert metrics.span_f1(["x"], ["y"]) == metrics.span_f1([], ["y"]) == 0
    assert metrics.span_exact(["Red"], ["red"]) == 1
    assert metrics.span_exact(["suits", "red"], ["red", "suits"]) == 0

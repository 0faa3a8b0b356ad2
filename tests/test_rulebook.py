"""The notation, the registry, and the text of every refusal."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

import optin_fx as ofx
from optin_fx import rulebook
from optin_fx.errors import RuleError
from optin_fx.rulebook import line, shape_of_term


@torch.library.custom_op("rulebook_test::gate", mutates_args=())
def gate(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return x * weight


@gate.register_fake
def _(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


OP = torch.ops.rulebook_test.gate.default


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = torch.nn.Linear(3, 5), torch.nn.Linear(5, 2)
        self.weight = torch.nn.Parameter(torch.randn(5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(OP(self.up(x), self.weight))


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    yield
    rulebook.forget(OP)


@pytest.mark.parametrize(
    "text",
    [
        "b i, o i, o -> b o",
        "... (h d) -> ... h d",
        "b (x + y) -> b x, b y",
        "b ((h g) + (h 1)) -> b h",
        "_ -> n0 n1",
        "k, k -> ",
        "b 1 -> b n",
    ],
)
def test_a_line_prints_as_it_is_written(text: str) -> None:
    assert str(line(text)) == text


def test_pins_and_sizes() -> None:
    found = line("... q! d, (h k!) -> ... d", sizes={"h": 2}, why="a reason")
    assert found.pinned == {"q", "k"}
    assert str(found) == "... q d, (h k) -> ... d"
    assert shape_of_term(line("(h (a + 3)) -> ").operands[0][0], {"h": 2, "a": 4}) == 14  # type: ignore[index]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("b i", "no '->' in the rule line 'b i'\n  fix write operands -> results, as in 'i, o i -> o'"),
        ("(a b -> a b", "unbalanced '(' in the rule line '(a b -> a b'\n  fix close every parenthesis that is opened"),
        ("a b) -> a b", "unbalanced ')' in the rule line 'a b) -> a b'\n  fix close every parenthesis that is opened"),
        ("a-b -> c", "bad factor name 'a-b' in the rule line 'a-b -> c'\n  fix use letters, digits and _"),
    ],
)
def test_malformed_lines(text: str, message: str) -> None:
    with pytest.raises(RuleError) as error:
        line(text)
    assert str(error.value) == message


def test_a_rule_of_the_users() -> None:
    program = ofx.trace(Net(), (torch.randn(2, 3),))
    assert not ofx.group(program).free
    ofx.rule(OP, mapping="... c, c -> ... c")
    program = ofx.trace(Net(), (torch.randn(2, 3),))
    assert [g.extent for g in ofx.group(program).free] == [5]
    assert ofx.verify(program, ofx.random_plan(program))


def test_registered_twice() -> None:
    ofx.rule(OP, mapping="... c, c -> ... c")
    with pytest.raises(RuleError) as error:
        ofx.rule(OP, mapping="c, c -> c")
    assert str(error.value).startswith("rulebook_test.gate.default has a rule already: ... c, c -> ... c\n  fix ")


def test_a_packet_is_not_an_overload() -> None:
    with pytest.raises(RuleError) as error:
        ofx.rule(torch.ops.rulebook_test.gate, mapping="c, c -> c")  # type: ignore[arg-type]
    assert str(error.value) == (
        "rulebook_test.gate is not an overload\n  so  a rule would be ambiguous\n  fix register one of: rulebook_test.gate.default"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("... c -> ... c", "the rule of rulebook_test.gate.default has 1 operands and 1 results, the call has 2 and 1"),
        ("b c d, c -> b c", "the rule of rulebook_test.gate.default gives operand 'x' 3 dims, it has 2"),
    ],
)
def test_a_rule_that_does_not_fit_its_op(text: str, message: str) -> None:
    ofx.rule(OP, mapping=text)
    with pytest.raises(RuleError) as error:
        ofx.group(ofx.trace(Net(), (torch.randn(2, 3),)))
    assert str(error.value) == f"{message}\n  at  %gate\n  fix correct the line: {text}"


def test_a_result_of_another_rank_is_refused() -> None:
    ofx.rule(OP, mapping="b c, c -> b c c")
    with pytest.raises(RuleError) as error:
        ofx.group(ofx.trace(Net(), (torch.randn(2, 3),)))
    assert str(error.value).splitlines()[0] == "the rule of rulebook_test.gate.default gives result 0 3 dims, it has 2"


def test_a_result_of_another_size_is_refused() -> None:
    ofx.rule(OP, mapping=line("b c, c -> b (c z)", sizes={"z": 2}))
    with pytest.raises(RuleError) as error:
        ofx.group(ofx.trace(Net(), (torch.randn(2, 3),)))
    assert str(error.value).splitlines()[0] == "the rule of rulebook_test.gate.default makes dim 1 of result 0 10 long, it is 5"


def test_a_factor_without_a_size_is_refused() -> None:
    ofx.rule(OP, mapping=lambda call: "b (h d), (h d) -> b (h d)")
    with pytest.raises(RuleError) as error:
        ofx.group(ofx.trace(Net(), (torch.randn(2, 3),)))
    assert str(error.value) == "the extent of 'h' follows from nothing\n  at  %gate\n  fix give it in sizes="


def test_a_rule_may_decline() -> None:
    def never(call: Any) -> None:
        return None

    ofx.rule(OP)(never)
    program = ofx.trace(Net(), (torch.randn(2, 3),))
    assert "no rule for this use of rulebook_test.gate.default" in str(ofx.group(program))

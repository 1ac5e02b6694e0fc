"""What an error says, and what of it a client gets back from the sentence."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera.errors import InvalidInput, brief

FIELDS = st.sampled_from(["STEPS", "LORAS[0].weight", "CONTROLS[3]", "lora_policy"])
VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.lists(st.integers()),
    st.dictionaries(st.text(), st.none()),
)  # fmt: skip
PROBLEMS = st.sampled_from(
    ["is missing", "has 64 x 8 pixels", "is not a key", "is not UTF-8 at byte 3", "names a, b"]
)


def test_a_problem_is_not_quoted_as_if_it_were_the_value() -> None:
    error = InvalidInput.described("MASK", "has no pixel of 128 or more", "128 to 255 somewhere")
    assert str(error) == "MASK has no pixel of 128 or more; accepted: 128 to 255 somewhere"
    assert (error.field, error.value, error.accepted) == ("MASK", None, "128 to 255 somewhere")
    assert error.problem == "has no pixel of 128 or more"
    assert error.status == "INVALID_ARG"


@given(FIELDS, VALUES)
def test_a_value_comes_back_as_it_was_written(field: str, value: object) -> None:
    sent = InvalidInput(field, value, "a, b")
    back = InvalidInput.received(str(sent))
    assert (back.field, back.value, back.accepted) == (field, brief(value), "a, b")
    assert back.problem == ""
    assert str(back) == str(sent)


@given(FIELDS, PROBLEMS)
def test_a_problem_comes_back_as_one(field: str, problem: str) -> None:
    sent = InvalidInput.described(field, problem, "a, b")
    back = InvalidInput.received(str(sent))
    assert (back.field, back.value, back.accepted) == (field, None, "a, b")
    assert back.problem == problem
    assert str(back) == str(sent)


@given(st.text())
def test_any_sentence_is_kept(sentence: str) -> None:
    assert str(InvalidInput.received(sentence)) == sentence


@pytest.mark.parametrize("value", [10**5000, "x" * 500, [[1] * 900]], ids=["int", "text", "list"])
def test_long_values_are_cut(value: object) -> None:
    assert len(brief(value)) < 120


def test_a_value_that_cannot_be_written_is_named_by_its_type() -> None:
    nested: list[object] = []
    for _ in range(100_000):
        nested = [nested]
    assert brief(nested) == "<list>"
    while nested:  # or its end would be as deep as it is
        nested = nested.pop()  # type: ignore[assignment]

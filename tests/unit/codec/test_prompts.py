"""The syntax of weighted prompts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera.codec.prompts import Part, heaviest, parts_of

CASES: dict[str, list[tuple[str, float, bool]]] = {
    "a red circle": [("a red circle", 1, False)],
    "a (red:1.3) [cat] ((x))": [
        ("a ", 1, False),
        ("red", 1.3, False),
        (" ", 1, False),
        ("cat", 1 / 1.1, False),
        (" ", 1, False),
        ("x", 1.21, False),
    ],
    "a BREAK b": [("a ", 1, False), (" b", 1, True)],
    "BREAKFAST": [("BREAKFAST", 1, False)],
    "(a BREAK b:1.2)": [("a ", 1.2, False), (" b", 1.2, True)],
    "(a (b:2) c": [("a ", 1.1, False), ("b", 2.2, False), (" c", 1.1, False)],
    "[(a:1.5) b]": [("a", 1.5 / 1.1, False), (" b", 1 / 1.1, False)],
    r"a \(b\) \[c\] \\ )d]": [(r"a (b) [c] \ )d]", 1, False)],
    "(a:x)": [("a:x", 1.1, False)],
    "(a:-.5)": [("a", -0.5, False)],
    "(a: 2. )": [("a", 2, False)],
    "[a:b:0.5]": [("a:b:0.5", 1 / 1.1, False)],
    "3:2) b": [("3:2) b", 1, False)],
    "(a]b)": [("a]b", 1.1, False)],
    "": [],
    "(:2)": [],
}


@pytest.mark.parametrize("prompt", CASES)
def test_parts(prompt: str) -> None:
    found = parts_of(prompt)
    assert [(p.text, p.breaks) for p in found] == [(t, b) for t, _, b in CASES[prompt]]
    assert [p.weight for p in found] == pytest.approx([w for _, w, _ in CASES[prompt]])


@given(st.text(alphabet="ab ()[]\\:.1", max_size=40))
def test_any_text_has_parts_and_loses_no_letter(prompt: str) -> None:
    said = "".join(part.text for part in parts_of(prompt))
    assert [c for c in said if c in "ab"] == [c for c in prompt if c in "ab"]


@given(st.text(max_size=40).filter(lambda t: not set(t) & set("()[]\\") and "BREAK" not in t))
def test_text_without_brackets_is_one_part(prompt: str) -> None:
    assert parts_of(prompt) == ([Part(prompt)] if prompt else [])


def test_the_heaviest() -> None:
    assert heaviest("a") == heaviest("") == 1
    assert heaviest("(a:2) (b:-3)") == -3
    assert heaviest("((a:5) b:4)") == 20

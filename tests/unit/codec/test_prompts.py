"""The syntax of weighted prompts."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tessera.codec import prompts
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


def by_each_bracket(prompt: str) -> list[Part]:
    """The parts of a prompt, found by weighing all that a bracket has in it when it closes."""
    found, open_at, end = [Part("")], list[tuple[str, int]](), 0

    def say(text: str) -> None:
        found[-1] = Part(found[-1].text + text, found[-1].weight, found[-1].breaks)

    def close(factor: float) -> None:
        _, first = open_at.pop()
        found[first:] = [Part(p.text, p.weight * factor, p.breaks) for p in found[first:]]
        found.append(Part(""))

    for match in prompts._PIECES.finditer(prompt):
        say(prompt[end : match.start()])
        end = match.end()
        escaped, opened, number, closed, broken = match.groups()
        last = open_at[-1][0] if open_at else ""
        if opened or broken:
            if opened:
                open_at.append((opened, len(found)))
            found.append(Part("", breaks=bool(broken)))
        elif number is not None and last == "(":
            close(float(number))
        elif closed and last + closed in ("()", "[]"):
            close(1.1 if closed == ")" else 1 / 1.1)
        else:
            say(escaped or match.group())
    say(prompt[end:])
    while open_at:
        close(1.1 if open_at[-1][0] == "(" else 1 / 1.1)
    joined: list[Part] = []
    for part in found:
        if joined and not part.breaks and math.isclose(joined[-1].weight, part.weight):
            joined[-1] = Part(joined[-1].text + part.text, joined[-1].weight, joined[-1].breaks)
        elif part.text or part.breaks:
            joined.append(part)
    return joined


PIECES = [
    "a",
    "b ",
    "(",
    "((",
    "[",
    ")",
    ":1.3)",
    ": -.5 )",
    ":0)",
    "]",
    "\\(",
    "\\",
    " BREAK ",
    ":2",
]


@given(st.lists(st.sampled_from(PIECES), max_size=40))
@settings(max_examples=1000)
def test_a_weight_is_the_product_of_the_brackets_around(pieces: list[str]) -> None:
    """Bit for bit with up to two; with more, only the order in which they multiply differs."""
    prompt = "".join(pieces)
    found, expected = parts_of(prompt), by_each_bracket(prompt)
    assert [(p.text, p.breaks) for p in found] == [(p.text, p.breaks) for p in expected]
    exact = prompt.count("(") + prompt.count("[") <= 2
    weights = [p.weight for p in expected]
    assert [p.weight for p in found] == (
        weights if exact else pytest.approx(weights, rel=1e-13, abs=0)
    )


@pytest.mark.parametrize("text", ["(", "[", "(a", "[a", "(a:2)", "a BREAK (", "])"])
@pytest.mark.parametrize("end", ["", "a", ")" * 500])
def test_work_grows_with_the_length_of_a_prompt(
    text: str, end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = list[int]()

    def counted(text: str, weight: float = 1.0, breaks: bool = False) -> Part:
        made.append(1)
        return Part(text, weight, breaks)

    monkeypatch.setattr(prompts, "Part", counted)
    prompt = text * 1500 + end
    parts_of(prompt)
    assert 0 < len(made) <= 3 * len(prompt) + 3

"""The syntax of weighted prompts: which parts of a prompt have which weight, and where it is cut.

It is the syntax of stable-diffusion-webui, as far as it is about weights:

    (word)        1.1 times the weight; brackets nest, and their weights multiply
    (word:1.3)    1.3 times
    [word]        divided by 1.1
    \\( \\) \\[ \\]   the brackets themselves; \\\\ is a backslash
    a BREAK b     b begins a new chunk of tokens

A bracket that is never closed counts up to the end. One that was never opened is text. Standard
library only.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

STEP = 1.1
"""What one pair of brackets without a number multiplies or divides by."""
_NUMBER = r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)"
_PIECES = re.compile(rf"\\([()\[\]\\])|([(\[])|:\s*({_NUMBER})\s*\)|([)\]])|\b(BREAK)\b")

_OPENS = {")": "(", "]": "["}


@dataclass(frozen=True)
class Part:
    """Text of one weight.

    Attributes:
        text: without brackets and escapes.
        weight: 1 outside of brackets.
        breaks: whether it begins a new chunk of tokens.
    """

    text: str
    weight: float = 1.0
    breaks: bool = False


def parts_of(prompt: str) -> list[Part]:
    """The parts of a prompt, in order; neighbours of equal weight are one part."""
    pieces = list(_PIECES.finditer(prompt))
    factors = _factors(pieces)
    found, weights = [Part("")], [1.0]  # weights within the brackets that are open
    end = 0
    for place, match in enumerate(pieces):
        _say(found, prompt[end : match.start()])
        end = match.end()
        escaped, *_, broken = match.groups()
        if place in factors:
            if (factor := factors[place]) is None:
                weights.pop()
            else:
                weights.append(weights[-1] * factor)
            found.append(Part("", weights[-1]))
        elif broken:
            found.append(Part("", weights[-1], breaks=True))
        else:
            _say(found, escaped or match.group())
    _say(found, prompt[end:])
    return _joined(found)


def heaviest(prompt: str) -> float:
    """The weight furthest from zero in a prompt; NaN if any is: infinity times zero."""
    weights = [part.weight for part in parts_of(prompt)]
    return math.nan if any(map(math.isnan, weights)) else max(weights, key=abs, default=1.0)


def _factor(bracket: str) -> float:
    return STEP if bracket in "()" else 1 / STEP


def _say(found: list[Part], text: str) -> None:
    last = found[-1]
    found[-1] = Part(last.text + text, last.weight, last.breaks)


def _factors(pieces: Sequence[re.Match[str]]) -> dict[int, float | None]:
    """What each bracket that opens multiplies by, by its place; `None` for those that close one."""
    factors: dict[int, float | None] = {}
    open_at: list[int] = []
    for place, match in enumerate(pieces):
        _, opened, number, closed, _ = match.groups()
        last = pieces[open_at[-1]].group() if open_at else ""
        if opened:
            open_at.append(place)
            factors[place] = _factor(opened)
        elif number is not None and last == "(":
            factors[open_at.pop()], factors[place] = float(number), None
        elif closed and last == _OPENS[closed]:
            open_at.pop()
            factors[place] = None
    return factors


def _joined(found: list[Part]) -> list[Part]:
    joined: list[Part] = []
    for part in found:
        same = joined and not part.breaks and math.isclose(joined[-1].weight, part.weight)
        if same:
            last = joined[-1]
            joined[-1] = Part(last.text + part.text, last.weight, last.breaks)
        elif part.text or part.breaks:
            joined.append(part)
    return joined

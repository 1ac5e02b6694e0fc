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
from dataclasses import dataclass

STEP = 1.1
"""What one pair of brackets without a number multiplies or divides by."""
_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)"
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
    found, open_at = [Part("")], list[tuple[str, int]]()
    end = 0
    for match in _PIECES.finditer(prompt):
        _say(found, prompt[end : match.start()])
        end = match.end()
        escaped, opened, number, closed, broken = match.groups()
        if escaped:
            _say(found, escaped)
        elif opened:
            open_at.append((opened, len(found)))
            found.append(Part(""))
        elif broken:
            found.append(Part("", breaks=True))
        elif number is not None and open_at and open_at[-1][0] == "(":
            _weigh(found, open_at.pop()[1], float(number))
        elif closed and open_at and open_at[-1][0] == _OPENS[closed]:
            _weigh(found, open_at.pop()[1], _factor(closed))
        else:
            _say(found, match.group())
    _say(found, prompt[end:])
    for opened, first in reversed(open_at):
        _weigh(found, first, _factor(opened))
    return _joined(found)


def heaviest(prompt: str) -> float:
    """The weight furthest from zero in a prompt."""
    return max((part.weight for part in parts_of(prompt)), key=abs, default=1.0)


def _factor(bracket: str) -> float:
    return STEP if bracket in "()" else 1 / STEP


def _say(found: list[Part], text: str) -> None:
    last = found[-1]
    found[-1] = Part(last.text + text, last.weight, last.breaks)


def _weigh(found: list[Part], first: int, factor: float) -> None:
    """Multiply the weight of all parts from `first` on; what follows begins anew."""
    found[first:] = [Part(p.text, p.weight * factor, p.breaks) for p in found[first:]]
    found.append(Part(""))


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

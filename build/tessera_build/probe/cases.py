"""The edits that a probe compares: prompts and masks."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from tessera.errors import BundleError
from tessera.types import Array

SHARES = (0.02, 0.05, 0.11, 0.2, 0.35)
"""Of the picture that is masked, from case to case."""

LIMITS = (0.03, 0.06, 0.15, 0.25, 1.0)
"""Masks up to these shares take what was measured at each of `SHARES`. The limits of the demo
model's policies are among them."""

FIELDS = ("template", "edit", "near")


@dataclass(frozen=True)
class Prompts:
    """What a case draws.

    Attributes:
        template: prompt of the picture that is edited. The bundle draws it.
        edit: prompt of the edit. It names what shall be new.
        near: prompt of another edit at the same place, a recording of which may serve this one.
        at: (x, y) of the mask's middle, as shares of the picture; `None` for any place.
    """

    template: str
    edit: str
    near: str
    at: tuple[float, float] | None = None


GENERAL = (
    Prompts("a living room with a grey sofa", "a sleeping cat", "a sleeping dog"),
    Prompts("a street in an old town at noon", "a red bicycle", "a blue bicycle"),
    Prompts("a wooden table by a window", "a bowl of oranges", "a bowl of apples"),
    Prompts("portrait photo of a woman in a park", "a straw hat", "a felt hat"),
    Prompts("a mountain lake in summer", "a rowing boat", "a sailing boat"),
    Prompts("a white wall with a shelf of books", "a round clock", "a round mirror"),
    Prompts("a leather handbag on a plain background", "a golden buckle", "a silver buckle"),
    Prompts("a sandy beach under a cloudy sky", "a striped umbrella", "a yellow umbrella"),
)
"""For checkpoints that draw anything."""


@dataclass(frozen=True)
class Case:
    """One edit.

    Attributes:
        number: counts from 0; its seed.
        share: of the picture that is masked.
        prompts: what is drawn.
    """

    number: int
    share: float
    prompts: Prompts

    def mask(self, width: int, height: int) -> Array:
        """A rectangle (h, w), UINT8, 255 inside. A square if there is room."""
        area = self.share * width * height
        high = min(height, round(area**0.5))
        wide = min(width, round(area / high))
        high = min(height, round(area / wide))
        x, y = self.prompts.at or np.random.default_rng(self.number).uniform(0.2, 0.8, 2)
        left, top = _inside(x * width, wide, width), _inside(y * height, high, height)
        mask = np.zeros((height, width), np.uint8)
        mask[top : top + high, left : left + wide] = 255
        return mask


def cases(prompts: tuple[Prompts, ...]) -> Iterator[Case]:
    """Cases without end: all shares, then all again with other prompts."""
    for number in count():
        yield Case(number, SHARES[number % len(SHARES)], prompts[number % len(prompts)])


def read_prompts(path: Path) -> tuple[Prompts, ...]:
    """Prompts from a JSON file: a list of objects with `template`, `edit`, `near` and perhaps `at`.

    Raises:
        BundleError: it cannot be read, or an entry is not one.
    """
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise BundleError(f"{path} cannot be read: {error}") from None
    if not isinstance(content, list) or not content:
        raise BundleError(f"{path} holds no list of prompts; see docs/operations.md")
    return tuple(_read(path, number, entry) for number, entry in enumerate(content))


def _read(path: Path, number: int, entry: Any) -> Prompts:
    where = f"{path}: entry {number}"
    fields = f"an object of {', '.join(FIELDS)} and perhaps at"
    if not isinstance(entry, dict):
        raise BundleError(f"{where} is {entry!r}, not {fields}")
    if unknown := set(entry) - {*FIELDS, "at"}:
        raise BundleError(f"{where} has {', '.join(sorted(unknown))}; accepted: {fields}")
    for name in FIELDS:
        if not isinstance(entry.get(name), str) or not entry[name].strip():
            raise BundleError(f"{where}: {name} is {entry.get(name)!r}, not a text")
    at = entry.get("at")
    if at is not None and not _is_place(at):
        raise BundleError(f"{where}: at is {at!r}, not two numbers from 0 to 1")
    return Prompts(entry["template"], entry["edit"], entry["near"], tuple(at) if at else None)


def _is_place(at: Any) -> bool:
    return (
        isinstance(at, list)
        and len(at) == 2
        and all(isinstance(v, int | float) and not isinstance(v, bool) and 0 <= v <= 1 for v in at)
    )


def _inside(middle: float, size: int, whole: int) -> int:
    return int(min(max(0, middle - size / 2), whole - size))

"""The little world of the demo model: scenes of one or two coloured shapes on a background, and
their prompts.

A `Scene` is what a picture shows; `describe` turns it into a prompt; `sample_scene` draws one at
random. Knows nothing of pixels (`draw.py`) and nothing of networks.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

SHAPES = ("circle", "square", "triangle", "star", "cross", "diamond")
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "white", "black")
PATTERNS = ("plain", "striped", "dotted", "checkered")
SIZES = {"small": 11.0, "medium": 16.0, "large": 23.0}
"""Words for size -> radius in pixels of the disc whose area the shape has."""

POSITIONS = {
    "top left": (38.0, 38.0),
    "top": (64.0, 38.0),
    "top right": (90.0, 38.0),
    "left": (38.0, 64.0),
    "center": (64.0, 64.0),
    "right": (90.0, 64.0),
    "bottom left": (38.0, 90.0),
    "bottom": (64.0, 90.0),
    "bottom right": (90.0, 90.0),
}
"""Words for position -> centre (x, y) in pixels of a 128 x 128 picture."""

CANVAS = 128
REACH = {
    "circle": 1.0,
    "square": 1.26,
    "triangle": 1.56,
    "star": 1.6,
    "cross": 1.23,
    "diamond": 1.6,
}
"""Farthest corner of each shape from its centre, in units of its size (`draw.outline` has the
corners)."""
JITTER = 3.0
"""Largest shift, in pixels and per axis, of a shape from the centre its position word names."""


@dataclass(frozen=True)
class Item:
    """One shape: what it is, and where (`dx`, `dy` shift it from its position's centre, in
    pixels).
    """

    shape: str
    colour: str
    size: str
    position: str
    dx: float = 0.0
    dy: float = 0.0

    @property
    def centre(self) -> tuple[float, float]:
        """Centre (x, y) in pixels."""
        x, y = POSITIONS[self.position]
        return x + self.dx, y + self.dy


@dataclass(frozen=True)
class Scene:
    """One or two items on a background."""

    items: tuple[Item, ...]
    background: str
    pattern: str = "plain"

    @property
    def held_out(self) -> bool:
        """Whether the scene belongs to the tenth of all scenes that training never sees."""
        words = [(i.shape, i.colour, i.size, i.position) for i in self.items]
        digest = hashlib.sha256(repr((words, self.background, self.pattern)).encode()).digest()
        return digest[0] < 26


def sample_scene(rng: random.Random, two: float = 0.5) -> Scene:
    """Draw a scene; `two` is the chance of a second shape.

    Shapes never touch or share a colour with the ground.
    """
    background = rng.choice(COLOURS)
    pattern = rng.choice(PATTERNS)
    items = [_sample_item(rng, background)]
    if rng.random() < two:
        for _ in range(50):
            other = _sample_item(rng, background)
            if _apart(items[0], other):
                items.append(other)
                break
    return Scene(tuple(items), background, pattern)


def describe(scene: Scene) -> str:
    """The full prompt: every attribute named, in the one order that examples and tests use."""
    clauses = [_item_clause(i) for i in scene.items]
    return f"{' and '.join(clauses)} on {_ground_clause(scene)}"


def describe_colours(scene: Scene) -> str:
    """A prompt without geometry, for use with a ControlNet: "red and blue on a green background".

    Which shape has which colour is left open.
    """
    return f"{' and '.join(i.colour for i in scene.items)} on {_ground_clause(scene)}"


def describe_shapes(scene: Scene) -> str:
    """A prompt without size and position: "a red circle and a blue star on a green background"."""
    items = (_article(f"{item.colour} {item.shape}") for item in scene.items)
    return f"{' and '.join(items)} on {_ground_clause(scene)}"


def paraphrase(scene: Scene, rng: random.Random) -> str:
    """A looser prompt for training: attributes may be left out, clauses and wording vary."""
    clauses = [_loose_item_clause(i, rng) for i in scene.items]
    rng.shuffle(clauses)
    text = rng.choice((" and ", " and ", ", ", " with ")).join(clauses)
    if rng.random() < 0.12:
        return text
    ground = _ground_clause(scene, plain=rng.random() < 0.3)
    return f"{ground} with {text}" if rng.random() < 0.1 else f"{text} on {ground}"


def held_out_scenes(count: int, seed: int = 0) -> list[Scene]:
    """`count` different scenes that training never sees."""
    rng, seen = random.Random(seed), dict[str, Scene]()
    while len(seen) < count:
        scene = sample_scene(rng)
        if scene.held_out:
            seen.setdefault(describe(scene), scene)
    return list(seen.values())


def vocabulary() -> Sequence[str]:
    """Every word that prompts are made of."""
    words = {"a", "an", "and", "on", "with", "at", "in", "the", "background", "middle", ","}
    words |= {*SHAPES, *COLOURS, *PATTERNS, *SIZES}
    for position in POSITIONS:
        words |= set(position.split())
    return sorted(words)


def _sample_item(rng: random.Random, background: str) -> Item:
    return Item(
        shape=rng.choice(SHAPES),
        colour=rng.choice([c for c in COLOURS if c != background]),
        size=rng.choice(list(SIZES)),
        position=rng.choice(list(POSITIONS)),
        dx=rng.uniform(-JITTER, JITTER),
        dy=rng.uniform(-JITTER, JITTER),
    )


def _apart(a: Item, b: Item) -> bool:
    """Whether the discs around the two shapes keep a gap of 4 pixels."""
    return math.dist(a.centre, b.centre) >= _reach(a) + _reach(b) + 4


def _reach(item: Item) -> float:
    return SIZES[item.size] * REACH[item.shape]


def _article(words: str) -> str:
    return f"an {words}" if words[0] in "aeiou" else f"a {words}"


def _item_clause(item: Item) -> str:
    preposition = "in" if item.position == "center" else "at"
    return (
        f"{_article(f'{item.size} {item.colour} {item.shape}')} {preposition} the {item.position}"
    )


def _loose_item_clause(item: Item, rng: random.Random) -> str:
    words = []
    if rng.random() < 0.85:
        words.append(item.size)
    if rng.random() < 0.93:
        words.append(item.colour)
    text = _article(" ".join([*words, item.shape]))
    if rng.random() < 0.85:
        position = item.position
        if position == "center" and rng.random() < 0.3:
            position = "middle"
        preposition = "in" if position in ("center", "middle") else rng.choice(("at", "in", "at"))
        text += f" {preposition} the {position}"
    return text


def _ground_clause(scene: Scene, *, plain: bool = False) -> str:
    pattern = "" if scene.pattern == "plain" and not plain else f"{scene.pattern} "
    return _article(f"{pattern}{scene.background} background")

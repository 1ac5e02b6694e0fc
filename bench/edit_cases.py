"""Cases of edits whose prompts name the new shape only, for `bench/edit_policies.py`.

Two kinds. `fresh`: a drawn scene, a mask that cuts the old shape. `held-out`: a scene that the
model itself has drawn, a mask over its first shape. The prompt says nothing of the background.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from bench.edit_lab import Edit
from bench.edit_quality import square
from tessera.types import Array
from tessera_build.demo.draw import render
from tessera_build.demo.scenes import (
    COLOURS,
    SHAPES,
    SIZES,
    Item,
    Scene,
    describe,
    held_out_scenes,
)

FRESH_RATIOS = (0.02, 0.05, 0.08, 0.11, 0.15, 0.2, 0.27, 0.35)
HELD_OUT_RATIOS = (0.05, 0.11, 0.2, 0.35)
FRESH, HELD_OUT = "fresh", "held-out"


@dataclass(frozen=True)
class Case:
    """One edit.

    Attributes:
        kind: `fresh` or `held-out`.
        ratio: the mask's share of the image.
        edit: its inputs.
        described: a prompt that describes the template.
        near: the prompt of another edit of the same template at the same place.
    """

    kind: str
    ratio: float
    edit: Edit
    described: str
    near: str


def fresh_cases(count: int, *, seed: int = 1811) -> list[Case]:
    """Drawn scenes, masks of all ratios in equal numbers, each moved so that it cuts the shape."""
    rng = random.Random(seed)
    scenes = held_out_scenes(count, seed=seed + 1)
    ratios = [FRESH_RATIOS[i * len(FRESH_RATIOS) // count] for i in range(count)]
    found = []
    for scene, ratio in zip(scenes, ratios, strict=True):
        old = scene.items[0]
        shift = SIZES[old.size] * rng.uniform(0.5, 1.0)
        x, y = (c + rng.choice((-1, 1)) * shift for c in old.centre)
        image = (render(scene) * 255).round().astype(np.uint8)
        found.append(_case(FRESH, scene, ratio, image, square((x, y), ratio), rng, guidance=4.0))
    return found


def held_out_cases(
    count: int, draw: Callable[[str, int], Array], *, seed: int = 1812
) -> list[Case]:
    """Scenes as the model draws them, masks over the first shape.

    Args:
        count: how many.
        draw: makes an image from (prompt, seed).
        seed: of the scenes.
    """
    rng = random.Random(seed)
    found = []
    for i, scene in enumerate(held_out_scenes(count, seed=seed + 1)):
        ratio = HELD_OUT_RATIOS[i % len(HELD_OUT_RATIOS)]
        image = draw(describe(scene), rng.randrange(1, 10**6))
        mask = square(scene.items[0].centre, ratio)
        found.append(_case(HELD_OUT, scene, ratio, image, mask, rng, guidance=5.0))
    return found


def _case(
    kind: str,
    scene: Scene,
    ratio: float,
    image: Array,
    mask: Array,
    rng: random.Random,
    *,
    guidance: float,
) -> Case:
    new = other = _another(scene, rng)
    while other == new:
        other = _another(scene, rng)
    edit = Edit(image, mask, _named(new), rng.randrange(1, 10**6), guidance=guidance)
    return Case(kind, ratio, edit, describe(scene), _named(other))


def _another(scene: Scene, rng: random.Random) -> Item:
    """An item in the place of the scene's first."""
    old = scene.items[0]
    return replace(
        old,
        shape=rng.choice([s for s in SHAPES if s != old.shape]),
        colour=rng.choice([c for c in COLOURS if c not in (old.colour, scene.background)]),
    )


def _named(item: Item) -> str:
    """A prompt that names an item, where it is, and nothing else."""
    return describe(Scene((item,), "white")).removesuffix(" on a white background")

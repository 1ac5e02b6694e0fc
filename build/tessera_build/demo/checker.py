"""Looks at a picture and says what is in it; scores pictures against the scenes their prompts
describe.

Classical image analysis, no network: pixels are named by their nearest palette colour (CIE Lab),
connected regions become items, a region's shape is the outline with the best overlap (intersection
over union) at the same place and area, and the background's pattern is the one it correlates with.
It never sees the prompt while it measures.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from tessera_build.demo.draw import PALETTE, Picture, pattern_mask, shade, shape_mask
from tessera_build.demo.scenes import COLOURS, PATTERNS, POSITIONS, SHAPES, SIZES, Item, Scene

_MIN_AREA = 120  # pixels; the small shapes have 380
_MIN_CONTRAST = (
    0.22  # of the distance between a pattern's two tones, as standard deviation; stripes have 0.5
)
Labels = npt.NDArray[np.intp]


@dataclass(frozen=True)
class Score:
    """Attributes found right, of those that the prompt names: `{"shape": (right, asked), ...}`."""

    right: dict[str, tuple[int, int]]

    @property
    def fraction(self) -> float:
        """Share of attributes that are right, 0..1."""
        return sum(r for r, _ in self.right.values()) / sum(n for _, n in self.right.values())

    @staticmethod
    def total(scores: Iterable[Score]) -> Score:
        """The scores of many pictures added up."""
        out: dict[str, tuple[int, int]] = {}
        for score in scores:
            for key, (r, n) in score.right.items():
                out[key] = (out.get(key, (0, 0))[0] + r, out.get(key, (0, 0))[1] + n)
        return Score(out)


def score(picture: Picture, scene: Scene) -> Score:
    """Compare a picture (128, 128, 3) in 0..1 with the scene that was asked for.

    Attributes: number of items; shape, colour, size and position of each; background colour and
    pattern. Found items are paired with the asked ones so that most attributes agree.
    """
    found = look(picture)
    pairs = max(_pairings(found.items, scene.items), key=_agreements)
    right = {
        key: (
            sum(f is not None and getattr(f, key) == getattr(a, key) for f, a in pairs),
            len(pairs),
        )
        for key in ("shape", "colour", "size", "position")
    }
    right["count"] = (int(len(found.items) == len(scene.items)), 1)
    right["background"] = (int(found.background == scene.background), 1)
    right["pattern"] = (int(found.pattern == scene.pattern), 1)
    return Score(right)


def look(picture: Picture) -> Scene:
    """What a picture (128, 128, 3) in 0..1 shows; any number of items, largest first."""
    labels = _name_pixels(picture)
    ground = _ground(labels)
    items = _above(labels, ground)
    count, regions, stats, centres = cv2.connectedComponentsWithStats(items, connectivity=8)
    order = sorted(range(1, count), key=lambda i: -int(stats[i, cv2.CC_STAT_AREA]))
    found = [
        _measure(regions == i, labels, (float(centres[i][0]) + 0.5, float(centres[i][1]) + 0.5))
        for i in order
        if stats[i, cv2.CC_STAT_AREA] >= _MIN_AREA
    ]
    around = cv2.dilate(items, np.ones((5, 5), np.uint8)) == 0
    return Scene(tuple(found), COLOURS[ground], _pattern(picture, around, COLOURS[ground]))


def foreground(picture: Picture) -> npt.NDArray[np.bool_]:
    """Where a picture (128, 128, 3) in 0..1 is not of its ground's colour: (128, 128)."""
    labels = _name_pixels(picture)
    return _above(labels, _ground(labels)).astype(bool)


def _ground(labels: Labels) -> int:
    return int(np.bincount(labels.ravel(), minlength=len(COLOURS)).argmax())


def _above(labels: Labels, ground: int) -> npt.NDArray[np.uint8]:
    """One where pixels are not of the ground's colour, without specks."""
    other = (labels != ground).astype(np.uint8)
    return cv2.morphologyEx(other, cv2.MORPH_OPEN, np.ones((3, 3), np.uint8)).astype(np.uint8)


def _name_pixels(picture: Picture) -> Labels:
    """Index into COLOURS of the nearest colour (either tone) of every pixel: (128, 128)."""
    tones = np.asarray([[PALETTE[c], shade(c)] for c in COLOURS], np.float32)  # (colour, tone, rgb)
    references = cv2.cvtColor(tones, cv2.COLOR_RGB2Lab).reshape(-1, 3)
    pixels = cv2.cvtColor(np.ascontiguousarray(picture, np.float32), cv2.COLOR_RGB2Lab).reshape(
        -1, 1, 3
    )
    distance = np.square(pixels - references).sum(-1)
    return (distance.argmin(-1) // 2).reshape(picture.shape[:2])


def _measure(region: npt.NDArray[np.bool_], labels: Labels, centre: tuple[float, float]) -> Item:
    colour = int(np.bincount(labels[region], minlength=len(COLOURS)).argmax())
    radius = math.sqrt(float(region.sum()) / math.pi)
    shape = max(SHAPES, key=lambda s: _overlap(region, shape_mask(s, centre, radius) > 0.5))
    size = min(SIZES, key=lambda s: abs(math.log(SIZES[s] / radius)))
    position = min(POSITIONS, key=lambda p: math.dist(POSITIONS[p], centre))
    return Item(shape, COLOURS[colour], size, position)


def _overlap(a: npt.NDArray[np.bool_], b: npt.NDArray[np.bool_]) -> float:
    return float((a & b).sum() / (a | b).sum())


def _pattern(picture: Picture, where: npt.NDArray[np.bool_], colour: str) -> str:
    """The pattern whose second tone the background's pixels follow."""
    first, second = np.asarray(PALETTE[colour]), np.asarray(shade(colour))
    axis = (second - first) / np.square(second - first).sum()
    weight = np.clip((picture[where] - first) @ axis, -0.5, 1.5)
    if weight.size == 0 or weight.std() < _MIN_CONTRAST:
        return "plain"
    return max(PATTERNS[1:], key=lambda p: float(np.corrcoef(weight, pattern_mask(p)[where])[0, 1]))


def _pairings(
    found: tuple[Item, ...], asked: tuple[Item, ...]
) -> Iterable[list[tuple[Item | None, Item]]]:
    padded = [*found[:4], *[None] * len(asked)]
    for chosen in itertools.permutations(padded, len(asked)):
        yield list(zip(chosen, asked, strict=True))


def _agreements(pairs: list[tuple[Item | None, Item]]) -> int:
    keys = ("shape", "colour", "size", "position")
    return sum(f is not None and getattr(f, k) == getattr(a, k) for f, a in pairs for k in keys)

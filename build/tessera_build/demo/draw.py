"""Draws scenes: the procedural renderer that the demo model learns from.

Pictures are float arrays (height, width, 3) in 0..1. Shapes have equal *area* at equal size, so
that size can be measured without knowing the shape. Knows scenes (`scenes.py`), nothing of
networks.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from tessera_build.demo.scenes import CANVAS, COLOURS, SIZES, Item, Scene

PALETTE: dict[str, tuple[float, float, float]] = {
    "red": (0.84, 0.10, 0.13),
    "orange": (0.98, 0.55, 0.09),
    "yellow": (0.98, 0.88, 0.20),
    "green": (0.16, 0.62, 0.27),
    "blue": (0.13, 0.32, 0.80),
    "purple": (0.52, 0.20, 0.66),
    "white": (0.96, 0.96, 0.96),
    "black": (0.07, 0.07, 0.08),
}
"""Colour word -> sRGB in 0..1."""

_OVERSAMPLE = 3
Picture = npt.NDArray[Any]  # float32
Mask = npt.NDArray[Any]  # float32


def shade(colour: str) -> tuple[float, float, float]:
    """The second tone of a background's pattern: the colour moved towards white (or towards black
    when light).
    """
    r, g, b = PALETTE[colour]
    towards, amount = (0.0, 0.22) if colour in ("white", "yellow", "orange") else (1.0, 0.22)
    mix = [(1 - amount) * c + amount * towards for c in (r, g, b)]
    return mix[0], mix[1], mix[2]


def render(scene: Scene) -> Picture:
    """Picture (128, 128, 3) of a scene, anti-aliased."""
    picture = background(scene.background, scene.pattern)
    for item in scene.items:
        mask = item_mask(item)[:, :, None]
        picture = picture * (1 - mask) + np.array(PALETTE[item.colour], np.float32) * mask
    return picture


def background(colour: str, pattern: str) -> Picture:
    """The ground alone (128, 128, 3); patterns always lie at the same place."""
    first, second = np.array([PALETTE[colour], shade(colour)], np.float32)
    weight = pattern_mask(pattern)[:, :, None]
    return first * (1 - weight) + second * weight


def pattern_mask(pattern: str) -> Mask:
    """Where a pattern has its second tone: (128, 128) in 0..1."""
    y, x = np.mgrid[0:CANVAS, 0:CANVAS].astype(np.float32) + 0.5
    match pattern:
        case "plain":
            return np.zeros((CANVAS, CANVAS), np.float32)
        case "striped":
            return ((y // 8) % 2).astype(np.float32)
        case "checkered":
            return ((x // 16 + y // 16) % 2).astype(np.float32)
        case "dotted":
            distance = np.hypot(x % 16 - 8, y % 16 - 8)
            return np.clip(5.0 - distance + 0.5, 0, 1).astype(np.float32)
    raise ValueError(f"pattern {pattern!r} is not one of plain, striped, dotted, checkered")


def item_mask(item: Item) -> Mask:
    """Coverage (128, 128) in 0..1 of one shape."""
    return shape_mask(item.shape, item.centre, SIZES[item.size])


def shape_mask(shape: str, centre: tuple[float, float], radius: float) -> Mask:
    """Coverage (128, 128) of a shape with the area of a disc of `radius` pixels around `centre` (x,
    y).
    """
    k = _OVERSAMPLE
    canvas = Image.new("L", (CANVAS * k, CANVAS * k), 0)
    points = [
        ((centre[0] + radius * x) * k, (centre[1] + radius * y) * k) for x, y in outline(shape)
    ]
    ImageDraw.Draw(canvas).polygon(points, fill=255)
    small = canvas.resize((CANVAS, CANVAS), Image.Resampling.BOX)
    return np.asarray(small, np.float32) / 255


def outline(shape: str) -> list[tuple[float, float]]:
    """Corners (x right, y down) of a shape around its centre of mass, scaled to the area of the
    unit disc.
    """
    corners = _corners(shape)
    ring = [*corners, corners[0]]
    area = abs(sum(x0 * y1 - x1 * y0 for (x0, y0), (x1, y1) in itertools.pairwise(ring))) / 2
    scale = math.sqrt(math.pi / area)
    return [(scale * x, scale * y) for x, y in corners]


def _corners(shape: str) -> list[tuple[float, float]]:
    match shape:
        case "circle":
            return [_polar(1, a * 360 / 64) for a in range(64)]
        case "square":
            return [(-1, -1), (1, -1), (1, 1), (-1, 1)]
        case "diamond":
            return [(0, -1.3), (0.8, 0), (0, 1.3), (-0.8, 0)]
        case "triangle":
            return [_polar(1, -90 + a * 120) for a in range(3)]
        case "star":
            return [_polar(1 if i % 2 == 0 else 0.42, -90 + i * 36) for i in range(10)]
        case "cross":
            a, b = 0.36, 1.0
            quarter = [(a, -b), (a, -a), (b, -a)]
            return [_turn(p, 90 * i) for i in range(4) for p in quarter]
    raise ValueError(
        f"shape {shape!r} is not one of circle, square, triangle, star, cross, diamond"
    )


def _polar(radius: float, degrees: float) -> tuple[float, float]:
    return radius * math.cos(math.radians(degrees)), radius * math.sin(math.radians(degrees))


def _turn(point: tuple[float, float], degrees: float) -> tuple[float, float]:
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return c * point[0] - s * point[1], s * point[0] + c * point[1]


assert set(PALETTE) == set(COLOURS)

"""The renderer's variants that the demo LoRAs learn, and whether a picture is of one of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from tessera_build.demo.draw import PALETTE, Picture, background, item_mask, render, shape_mask
from tessera_build.demo.scenes import SIZES, Scene

_HOLE = 0.58
"""Of a hole in a shape, in units of its size."""
_NIGHT = np.array([0.22, 0.24, 0.42], np.float32)
"""What is left of the ground's red, green and blue."""
_VISIBLE = 0.1
"""Least difference of a pixel by which two pictures are told apart."""


def outline(scene: Scene) -> Picture:
    """Shapes are rings: through a hole of their own form the ground shows."""
    picture = background(scene.background, scene.pattern)
    for item in scene.items:
        hole = shape_mask(item.shape, item.centre, _HOLE * SIZES[item.size])
        mask = np.clip(item_mask(item) - hole, 0, 1)[:, :, None]
        picture = picture * (1 - mask) + np.array(PALETTE[item.colour], np.float32) * mask
    return picture


def halved(scene: Scene) -> Picture:
    """The lower half of shapes is white, of white ones black."""
    picture = background(scene.background, scene.pattern)
    rows = np.arange(picture.shape[0])[:, None, None] + 0.5
    for item in scene.items:
        mask = item_mask(item)[:, :, None]
        other = PALETTE["black" if item.colour == "white" else "white"]
        fill = np.where(rows > item.centre[1], np.array(other), np.array(PALETTE[item.colour]))
        picture = picture * (1 - mask) + fill.astype(np.float32) * mask
    return picture


def night(scene: Scene) -> Picture:
    """The ground is dark and bluish, shapes shine as ever."""
    picture = background(scene.background, scene.pattern) * _NIGHT
    for item in scene.items:
        mask = item_mask(item)[:, :, None]
        picture = picture * (1 - mask) + np.array(PALETTE[item.colour], np.float32) * mask
    return picture


STYLES: Mapping[str, Callable[[Scene], Picture]] = {
    "outline": outline,
    "halved": halved,
    "night": night,
}


def shows(picture: Picture, scene: Scene, style: str) -> bool:
    """Whether a picture of a scene is closer to the style's rendering than to the plain one, over
    the pixels in which the two differ.
    """
    plain, styled = render(scene), STYLES[style](scene)
    where = np.abs(plain - styled).max(-1) > _VISIBLE
    distances = [np.square(picture - other)[where].sum() for other in (plain, styled)]
    return bool(distances[1] < distances[0])

"""Control pictures for the demo ControlNets, made from scenes, and how well a picture follows its
scene's geometry.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from tessera_build.demo.checker import Score, foreground, score
from tessera_build.demo.draw import Picture, item_mask, render
from tessera_build.demo.scenes import CANVAS, Scene

GEOMETRY = ("shape", "size", "position", "count")
"""The attributes of a scene that a control picture decides."""

_CANNY = 100, 200
Control = npt.NDArray[Any]  # uint8


def edges(scene: Scene) -> Control:
    """White edges on black (128, 128, 3), as photographs' are made: Canny's of the picture.

    OpenCV takes the strongest channel of each pixel: in grey, red on blue would have no edge.
    """
    return _three(cv2.Canny((255 * render(scene)).round().astype(np.uint8), *_CANNY))


def silhouette(scene: Scene) -> Control:
    """White shapes on black (128, 128, 3)."""
    return _three(255 * _covered(scene).astype(np.uint8))


CONTROLS: Mapping[str, Callable[[Scene], Control]] = {"edges": edges, "silhouette": silhouette}


def geometry(picture: Picture, scene: Scene) -> Score:
    """The checker's score of what a control picture decides."""
    return Score({key: score(picture, scene).right[key] for key in GEOMETRY})


def overlap(picture: Picture, scene: Scene) -> float:
    """Intersection over union of what is not ground in a picture and in its scene, 0..1."""
    found, asked = foreground(picture), _covered(scene)
    return float((found & asked).sum() / (found | asked).sum())


@dataclass(frozen=True)
class Judged:
    """How pictures follow the geometry of their scenes: attributes that are right, and the median
    intersection over union of what is not ground.
    """

    score: Score
    overlap: float

    @classmethod
    def of(cls, pictures: Sequence[Picture], scenes: Sequence[Scene]) -> Judged:
        """Look at one picture per scene."""
        pairs = list(zip(pictures, scenes, strict=True))
        return cls(
            Score.total(geometry(p, s) for p, s in pairs),
            float(np.median([overlap(p, s) for p, s in pairs])),
        )

    def __str__(self) -> str:
        return (
            f"{100 * self.score.fraction:.0f} % of the geometry right, overlap {self.overlap:.2f}"
        )


def _covered(scene: Scene) -> npt.NDArray[np.bool_]:
    masks = [item_mask(item) > 0.5 for item in scene.items]
    return np.any([np.zeros((CANVAS, CANVAS), bool), *masks], axis=0)


def _three(grey: npt.NDArray[Any]) -> Control:
    return np.repeat(grey[:, :, None], 3, axis=2)

"""What CONTROLS accepts. Standard library only."""

from __future__ import annotations

MAX_CONTROLS = 4
MAX_CONTROL_SCALE = 100.0
MAX_CONTROL_SIDE = 8192
"""Pixels in a side of CONTROL_IMAGES."""

PREPROCESSORS = ("none", "canny", "grey", "invert", "inpaint")
"""Values of `preprocess` in CONTROLS: what is made of an image; the first is the default."""

RESIZES = ("none", "stretch", "fit", "fill")
"""Values of `resize` in CONTROLS: how an image gets the picture's size; the first is the default
and accepts no other size."""

MAX_CANNY = 2040.0
"""Largest threshold of canny: no gradient of a picture of 8 bits is above it."""

CONTROL_MODES = {
    "openpose": 0,
    "depth": 1,
    "hed": 2,
    "pidi": 2,
    "scribble": 2,
    "ted": 2,
    "canny": 3,
    "lineart": 3,
    "anime_lineart": 3,
    "mlsd": 3,
    "normal": 4,
    "segment": 5,
    "tile": 6,
    "repaint": 7,
}
"""Names of a Union's modes, as xinsir's ControlNet-Union for SDXL counts them: six, and with tile
and repaint eight."""


def modes_of(count: int) -> list[str]:
    """Names of the modes of a Union that knows so many."""
    return [name for name, number in CONTROL_MODES.items() if number < count]

"""Values out of a request's inputs: numpy arrays with their leading batch dimension of 1, keyed by
the contract's names.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tessera.errors import InvalidInput
from tessera.types import Array

Inputs = Mapping[str, Array]


def text_of(inputs: Inputs, name: str, default: str, limit: int, accepted: str = "") -> str:
    """A text of at most `limit` characters, or `default` if it was left out.

    Raises:
        InvalidInput: it is longer, or not UTF-8; `accepted` says what would do.
    """
    if name not in inputs:
        return default
    raw = scalar_of(inputs[name])
    accepted = accepted or f"at most {limit} characters of UTF-8"
    try:
        text = raw.decode() if isinstance(raw, bytes) else str(raw)
    except UnicodeDecodeError as error:
        problem = f"is not UTF-8 at byte {error.start}"
        raise InvalidInput.described(name, problem, accepted) from None
    if len(text) > limit:
        raise InvalidInput(name, text, accepted)
    return text


def scalar_of(array: Array) -> Any:
    """The first element."""
    return np.asarray(array).reshape(-1)[0]


def pixels_of(picture: Array) -> str:
    """The size of a picture (h, w, ...) as errors say it."""
    height, width = picture.shape[:2]
    return f"{width} x {height} pixels"

"""Checks the tensors that travel from model to model beside a plan, which says their shapes and
checksums.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from tessera.contract import checksum
from tessera.errors import Corrupted, InvalidInput
from tessera.requests.fields import Inputs


def check_whole(
    inputs: Inputs,
    shapes: Mapping[str, tuple[int, ...]],
    sums: Mapping[str, int],
    names: Iterable[str],
) -> None:
    """See whether tensors are as they were sent.

    Args:
        inputs: with their leading batch dimension of 1.
        shapes: by name, without it, as a plan says.
        sums: checksums by name, of those that have one.
        names: of those to check.

    Raises:
        InvalidInput: one is missing, or has another shape.
        Corrupted: one has other content.
    """
    for name in names:
        accepted = _accepted(shapes[name])
        if name not in inputs:
            raise InvalidInput.described(name, "is missing", accepted)
        array = inputs[name]
        if array.shape != (1, *shapes[name]):
            raise InvalidInput.described(
                name, f"has the shape {_written(array.shape[1:])}", accepted
            )
        if name in sums and checksum(array) != sums[name]:
            raise Corrupted(name)


def check_finite(inputs: Inputs, names: Iterable[str]) -> None:
    """See whether tensors have finite numbers. It is for those who read them first, whole.

    Raises:
        InvalidInput: one has others.
    """
    for name in names:
        array = inputs[name]
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            accepted = _accepted(array.shape[1:])
            raise InvalidInput.described(name, "has numbers that are not finite", accepted)


def _accepted(shape: tuple[int, ...]) -> str:
    return f"finite numbers in the shape {_written(shape)}, as the plan says"


def _written(shape: tuple[int, ...]) -> str:
    return f"({', '.join(map(str, shape))})"

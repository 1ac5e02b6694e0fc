"""Checks the tensors that travel from model to model beside a plan, which says their shapes and
checksums.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from tessera.checksum import check_sum
from tessera.errors import InvalidInput
from tessera.requests.fields import Inputs


def check_tensors(
    inputs: Inputs,
    shapes: Mapping[str, tuple[int, ...]],
    sums: Mapping[str, int],
    names: Iterable[str],
) -> None:
    """See whether tensors are as a plan says and have finite numbers.

    Args:
        inputs: with their leading batch dimension of 1.
        shapes: by name, without it.
        sums: checksums by name, of those that have one.
        names: of those to check.

    Raises:
        InvalidInput: one is missing, has another shape, or has other numbers.
        Unavailable: one is as it may be, but not what was sent.
    """
    for name in names:
        accepted = f"finite numbers in the shape {_written(shapes[name])}, as the plan says"
        if name not in inputs:
            raise InvalidInput.described(name, "is missing", accepted)
        array = inputs[name]
        if array.shape != (1, *shapes[name]):
            raise InvalidInput.described(
                name, f"has the shape {_written(array.shape[1:])}", accepted
            )
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise InvalidInput.described(name, "has numbers that are not finite", accepted)
        if name in sums:
            check_sum(name, array, sums[name])


def _written(shape: tuple[int, ...]) -> str:
    return f"({', '.join(map(str, shape))})"

"""Checksums of tensors on their way between processes, and to the client.

Triton hands tensors on in shared memory. Behind the end of a model's process, that of Triton 2.51
breaks now and then (`docs/internals/triton.md`), also between processes that nobody has touched. A
tensor that is damaged there would become a wrong picture. CRC-32, which runs at 1 to 4 GB/s: it
finds accidents, and keeps nobody from anything.
"""

from __future__ import annotations

import zlib

import numpy as np

from tessera.errors import Unavailable
from tessera.types import Array


def checksum(array: Array) -> int:
    """CRC-32 of an array's bytes in C order, whatever its shape and type."""
    return zlib.crc32(np.ascontiguousarray(array))


def check_sum(name: str, array: Array, expected: int) -> None:
    """See whether a tensor is still what its sender took the checksum of.

    Raises:
        Unavailable: it is not. The request itself may have been right.
    """
    if checksum(array) != expected:
        raise Unavailable(f"{name} was damaged on its way; send the request again")

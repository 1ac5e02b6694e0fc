"""Checksums of tensors on their way between processes, and to the client.

Triton hands tensors on in shared memory. Behind the end of a model's process, that of Triton 2.51
breaks now and then (`docs/internals/triton.md`), also between processes that nobody has touched. A
tensor that is damaged there would become a wrong picture. CRC-32, which runs at 1 to 4 GB/s: it
finds accidents, and keeps nobody from anything.
"""

from __future__ import annotations

import zlib
from typing import Any


def checksum(array: Any) -> int:
    """CRC-32 of the bytes of an array, or any other buffer, in C order."""
    view = memoryview(array)
    return zlib.crc32(view if view.c_contiguous else view.tobytes())

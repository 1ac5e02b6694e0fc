"""What tritonserver prints on its standard error, without what it says of a GPU that is not there.

On a machine without one, Triton starts with errors about CUDA and NVML that mean nothing. These
lines, word for word, are left out there; every other line is passed on. Standard library only.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterable

_OF_NO_USE = re.compile(
    r'"CudaDriverHelper has not been initialized\."'
    r"|pinned_memory_manager\.cc:\d+\] .*(pinned memory pool will not be available"
    r"|falling back to non-pinned system memory)"
    r'|"unable to create stream for \w+: CUDA driver version is insufficient'
    r"|^Error: Failed to initialize NVML$"
    r'|"DCGM unable to start: DCGM initialization error"'
)


def whatever_happens(say: Callable[[str], None]) -> Callable[[str], None]:
    """Say lines that get lost if they cannot be written: a full disk, or a pipe that nobody reads,
    must not end a server.
    """

    def told(text: str) -> None:
        with contextlib.suppress(OSError, SystemExit):  # rich's for a broken pipe
            say(text)

    return told


def pass_on(lines: Iterable[bytes], say: Callable[[str], None]) -> None:
    """Say each line, but for those that tell of a missing GPU."""
    for line in lines:
        text = line.decode(errors="replace").rstrip("\n")
        if not _OF_NO_USE.search(text):
            say(text)

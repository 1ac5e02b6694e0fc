"""What this machine, or this container, has. Standard library only."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

SHARE = 4
"""Recorded steps may take one part in this many of a memory, unless the operator says otherwise."""

_DRIVER = Path("/dev/nvidiactl")
_LIMITS = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)


def memory() -> int:
    """Bytes: the machine's, or less if a control group sets a limit."""
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for path in _LIMITS:
        with contextlib.suppress(OSError, ValueError):  # no such group, or "max"
            found.append(int(path.read_text()))
    return min(found)


def has_driver() -> bool:
    """Whether this machine has NVIDIA's driver."""
    return _DRIVER.exists()


def memory_share() -> int:
    """Bytes that recorded steps may take in host memory."""
    return memory() // SHARE

"""Files that are there whole or not at all, and how long ago they were used."""

from __future__ import annotations

import os
import time
from pathlib import Path


def write(path: Path, content: bytes) -> None:
    """Write a file whole: to another name first."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_bytes(content)
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def age(path: Path) -> float:
    """Seconds since it was last used."""
    try:
        return time.time() - path.stat().st_mtime
    except OSError:
        return float("inf")

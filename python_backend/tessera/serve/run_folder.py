"""What one run of `tessera-serve` keeps in shared memory: a folder of its own, and the regions by
which Triton's Python backend hands tensors on. Standard library only.

Whatever a run leaves behind that was killed outright is removed by the next one.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tessera.shared.processes import SHARED, identity, lives, namespace

_PREFIX = "tessera-run-"


@contextlib.contextmanager
def run_folder() -> Iterator[Path]:
    """A folder in shared memory where there is any; it is gone afterwards, and regions named after
    it, too.
    """
    parent = SHARED if SHARED.is_dir() else Path(tempfile.gettempdir())
    _sweep(parent)
    own = identity(os.getpid()).replace(":", "-")
    folder = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{namespace()}-{own}-", dir=parent))
    try:
        yield folder
    finally:
        _remove(parent, folder.name)


def shared_memory(folder: Path) -> list[str]:
    """Flags by which regions of shared memory are named after a run's folder."""
    return [f"--backend-config=python,shm-region-prefix-name={folder.name}-"]


def _sweep(parent: Path) -> None:
    """Remove what runs have left whose process has ended."""
    for path in parent.glob(f"{_PREFIX}{namespace()}-*"):
        named = re.match(rf"{_PREFIX}\d+-(\d+)-(\d+)-", path.name)
        if named and not lives(f"{named[1]}:{named[2]}"):
            _remove(parent, path.name)


def _remove(parent: Path, name: str) -> None:
    for path in parent.glob(f"{name}*"):
        shutil.rmtree(path, ignore_errors=True)
        with contextlib.suppress(OSError):
            path.unlink()

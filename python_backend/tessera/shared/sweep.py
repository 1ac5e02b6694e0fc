"""Removes what servers that have ended left in shared memory. Standard library only."""

from __future__ import annotations

import contextlib
import re

from tessera.shared.processes import SHARED, lives, namespace
from tessera.shared.settings import BOARD_PREFIX


def sweep_boards() -> None:
    """Remove the boards of servers that have ended, with the files next to them.

    `tessera-serve` removes its own board.
    """
    for path in SHARED.glob(f"{BOARD_PREFIX}{namespace()}-*"):
        named = re.fullmatch(rf"{BOARD_PREFIX}\d+-(\d+)-(\d+)(\..*)?", path.name)
        if named and not lives(f"{named[1]}:{named[2]}"):
            with contextlib.suppress(OSError):  # another user's
                path.unlink()

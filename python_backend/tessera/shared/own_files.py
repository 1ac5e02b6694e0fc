"""Files that the processes of one server share, opened only if nobody else has put them there.

A tritonserver without `tessera-serve` has them in `/dev/shm`, where every user of the machine may
make files under names that can be guessed. Standard library only.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from tessera.errors import TesseraError


def open_own(path: Path, flags: int) -> int:
    """A descriptor of a regular file of this user, which is made (0600) if `flags` say so.

    Raises:
        TesseraError: it is a link, a device or a pipe, or another user's.
        FileNotFoundError: there is none, and it is not made.
    """
    try:
        file = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise TesseraError(f"{path} cannot be opened: {error.strerror}") from None
    status = os.fstat(file)
    if stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid():
        return file
    os.close(file)
    raise TesseraError(f"{path} is not a file of this server's user; remove it")

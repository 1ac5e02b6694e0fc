"""Files that the processes of one server share, opened only if nobody else has put them there.

A tritonserver without `tessera-serve` has them in `/dev/shm`, where every user of the machine may
make files under names that can be guessed. Standard library only.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from pathlib import Path

from tessera.errors import TesseraError

_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC


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


def read_own(path: Path) -> bytes:
    """What is in such a file.

    Raises:
        TesseraError, FileNotFoundError: see `open_own`.
    """
    with os.fdopen(open_own(path, os.O_RDONLY), "rb") as file:
        return file.read()


def write_own(path: Path, content: bytes, *, replace: bool = True) -> None:
    """Write such a file whole: under a name that nobody can guess, which then becomes `path`.

    Args:
        path: of the file.
        content: of the file.
        replace: whether it takes the place of one that is there, which is kept otherwise.

    Raises:
        OSError: it cannot be written, or a file of another user is in its place.
    """
    partial = Path(f"{path}.{secrets.token_hex(8)}")
    try:
        with os.fdopen(os.open(partial, _NEW, 0o600), "wb") as file:
            file.write(content)
        if replace:
            partial.replace(path)
        else:
            with contextlib.suppress(FileExistsError):
                os.link(partial, path)
    finally:
        partial.unlink(missing_ok=True)

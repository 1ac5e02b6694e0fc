"""Writing a bundle's folder: one build at a time, and system errors in a sentence."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from tessera.errors import BundleError, TesseraError


@contextlib.contextmanager
def writing(out: Path) -> Iterator[None]:
    """Turn a full disk or an unwritable folder into a `BundleError`.

    Raises:
        BundleError: something could not be written.
    """
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        yield
    except TesseraError:
        raise
    except Exception as error:
        reason = error.strerror if isinstance(error, OSError) else None
        if not isinstance(error, OSError) and "os error" not in str(error):
            raise  # libraries written in Rust raise system errors without a class of their own
        raise BundleError(f"{out} could not be written: {reason or error}") from error


@contextlib.contextmanager
def locked(out: Path) -> Iterator[None]:
    """Only one build at a time writes to `out`.

    Raises:
        BundleError: another one does.
    """
    lock = out.with_name(f".{out.name}.lock")
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not os.path.samestat(os.fstat(descriptor), lock.stat()):
            raise BlockingIOError  # just removed by its owner; another process may have a new one
    except (BlockingIOError, FileNotFoundError):
        os.close(descriptor)
        raise BundleError(f"another build is writing to {out}; wait until it ends") from None
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)
        os.close(descriptor)

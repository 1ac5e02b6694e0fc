"""Writing a bundle's folder: one build at a time, system errors in a sentence, and what builds that
were killed have left.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import stat
import time
from collections.abc import Iterator
from pathlib import Path

from tessera.errors import BundleError, TesseraError
from tessera.manifest import ADAPTERS, FILE_NAME
from tessera.variants import VARIANTS

STALE_S = 3600.0
"""A build's temporary folder of that age, of which no build holds the lock, was left behind."""

_TEMPORARY = re.compile(r"\.(.+)-[a-z0-9_]{8}")
_PARTS = {"graphs", "networks", "scheduler", ADAPTERS, FILE_NAME}
_PARTS |= {name for variant in VARIANTS.values() for name in variant.tokenizers}
"""What is in a bundle's folder."""


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
    """Only one build at a time writes to `out`. What others into the same folder have left is
    removed first.

    Raises:
        BundleError: another one does.
    """
    with _locked(out):
        for path in out.parent.glob(".*-*"):
            with contextlib.suppress(BundleError, OSError):
                _sweep(path, out)
        yield


@contextlib.contextmanager
def _locked(out: Path) -> Iterator[None]:
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


def _sweep(path: Path, out: Path) -> None:
    """Remove a temporary folder that was left behind; others stay.

    Args:
        path: any path beside `out`.
        out: what this process has locked.

    Raises:
        BundleError: a build is writing to it.
        OSError: it cannot be looked at.
    """
    named, status = _TEMPORARY.fullmatch(path.name), path.lstat()
    private = stat.S_ISDIR(status.st_mode) and status.st_mode & 0o777 == 0o700
    if named is None or not private or time.time() - status.st_mtime < STALE_S:
        return
    if {each.name for each in path.iterdir()} <= _PARTS:
        mine = named[1] == out.name
        with contextlib.nullcontext() if mine else _locked(path.with_name(named[1])):
            shutil.rmtree(path, ignore_errors=True)

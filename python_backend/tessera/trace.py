"""Where the time of a tick goes: spans of all model processes in one file, in the format of
Chrome's tracing, which Perfetto opens.

Nothing is written unless `write_to` has named a file, nor beyond `LIMIT` bytes of it or once it
cannot be written: requests matter more. Standard library only.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

LIMIT = 10**9
_NOTHING = contextlib.nullcontext()
_path: Path | None = None
_lock = threading.Lock()
_descriptor = -1


def write_to(file: Path | None) -> None:
    """Have this process write its spans to a file, or to none; called once, before the first."""
    global _path
    _path = file


def span(name: str, **details: Any) -> AbstractContextManager[None]:
    """The time that the body takes, as a bar of the current thread.

    Args:
        name: of the bar.
        details: shown when it is selected.
    """
    return _measured(name, details) if _path else _NOTHING


@contextlib.contextmanager
def _measured(name: str, details: dict[str, Any]) -> Iterator[None]:
    began = time.monotonic_ns()
    try:
        yield
    finally:
        _write(name, began, time.monotonic_ns() - began, details)


def _write(name: str, began: int, took: int, details: dict[str, Any]) -> None:
    """One event; a line is appended whole, whoever else writes."""
    event = {
        "name": name,
        "ph": "X",
        "ts": began / 1e3,  # microseconds of the machine's monotonic clock
        "dur": took / 1e3,
        "pid": os.getpid(),
        "tid": threading.get_native_id(),
        "args": details,
    }
    global _path
    try:
        descriptor = _file()
        if os.fstat(descriptor).st_size < LIMIT:
            os.write(descriptor, f"{json.dumps(event)},\n".encode())
    except OSError:
        _path = None


def _file() -> int:
    """The file, with the names of this process; the first to open it begins the list."""
    global _descriptor
    with _lock:
        if _descriptor < 0:
            assert _path is not None, "only called when there is one"
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
            _descriptor = os.open(_path, flags, 0o644)
            begin = "[\n" if os.fstat(_descriptor).st_size == 0 else ""
            named = {
                "name": "process_name",
                "ph": "M",
                "pid": os.getpid(),
                "args": {"name": _process_name()},
            }
            os.write(_descriptor, f"{begin}{json.dumps(named)},\n".encode())
        return _descriptor


def _process_name() -> str:
    """The model that this process runs: Triton's stub has its path as its first argument."""
    with open("/proc/self/cmdline", "rb") as file:
        words = file.read().decode().split("\0")
    parts = next((w.split("/") for w in words if w.endswith("/model.py")), words)
    return parts[-3] if len(parts) > 2 else parts[0]

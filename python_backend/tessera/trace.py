"""Where the time of a tick goes: spans of all model processes in one file, in the format of
Chrome's tracing, which Perfetto opens.

Nothing is written unless `write_to` has named a file, nor beyond `LIMIT` bytes of it or once it
cannot be written: requests matter more. A thread writes when its outermost span ends, not in
between: a write behind an engine, whose caches are cold, would take longer than what is measured.
Standard library only.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

LIMIT = 10**9
_NOTHING = contextlib.nullcontext()
_path: Path | None = None
_lock = threading.Lock()
_descriptor = -1


class _Thread(threading.local):
    """How many spans of this thread have not ended, and those that have but are not written."""

    def __init__(self) -> None:
        self.open = 0
        self.ended: list[tuple[str, int, int, dict[str, Any]]] = []


_thread = _Thread()


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
    return _Span(name, details) if _path else _NOTHING


class _Span(AbstractContextManager[None]):
    """Measures its body."""

    def __init__(self, name: str, details: dict[str, Any]) -> None:
        self._name, self._details, self._began = name, details, 0

    def __enter__(self) -> None:
        _thread.open += 1
        self._began = time.monotonic_ns()

    def __exit__(self, *_: object) -> None:
        took = time.monotonic_ns() - self._began
        _thread.ended.append((self._name, self._began, took, self._details))
        _thread.open -= 1
        if not _thread.open:
            _write(_thread.ended)
            _thread.ended = []


def _write(spans: list[tuple[str, int, int, dict[str, Any]]]) -> None:
    """An event for each span; all are appended at once, whoever else writes."""
    events = [
        {
            "name": name,
            "ph": "X",
            "ts": began / 1e3,  # microseconds of the machine's monotonic clock
            "dur": took / 1e3,
            "pid": os.getpid(),
            "tid": threading.get_native_id(),
            "args": details,
        }
        for name, began, took, details in spans
    ]
    global _path
    try:
        descriptor = _file()
        if os.fstat(descriptor).st_size < LIMIT:
            os.write(descriptor, "".join(f"{json.dumps(event)},\n" for event in events).encode())
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

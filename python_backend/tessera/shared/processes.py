"""Processes: which run a server's models, whether one lives, and that one ends with its parent.

Standard library only.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None)

SHARED = Path("/dev/shm")
"""Folder of files through which processes of one machine share memory."""

WARM_UP = "tessera-warm-up-"
"""How the ids of the first pictures begin, which nobody asked for: they are not counted. Requests
of others may not have such an id.
"""


def namespace() -> int:
    """The namespace of process ids. Containers that share memory may have equal process ids."""
    return os.stat("/proc/self/ns/pid").st_ino


def identity(process: int) -> str:
    """Process id and start time, unique on this machine. Empty if the process has ended, even if
    its parent has not collected its exit status yet.
    """
    try:
        fields = fields_of(process)
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else f"{process}:{fields[19]}"


def fields_of(process: int) -> list[str]:
    """What the kernel's `stat` says behind the name, which may be any bytes: its state, its parent
    and so on.

    Raises:
        OSError: there is no such process.
    """
    stat = Path(f"/proc/{process}/stat").read_bytes()
    return stat.rpartition(b")")[2].decode().split()


def lives(process: str) -> bool:
    """Whether the process with this `identity` is still running."""
    return bool(process) and identity(int(process.partition(":")[0])) == process


def model_processes(server: int) -> dict[int, str]:
    """Process id -> model, for the Python backend processes that a tritonserver has started."""
    models = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            if int(fields_of(int(entry.name))[1]) != server:
                continue
            arguments = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
        except (OSError, IndexError):
            continue
        if "triton_python_backend_stub" in arguments[0] and len(arguments) > 1:
            models[int(entry.name)] = Path(arguments[1]).parts[-3]
    return models


def die_with_parent(number: int) -> None:
    """Runs in the child before its program: have a signal end it when this process is gone, however
    that came about.
    """
    _LIBC.prctl(_PR_SET_PDEATHSIG, number)

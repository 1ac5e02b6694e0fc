"""Processes: the models' of a tritonserver, and whether one lives. Standard library only."""

from __future__ import annotations

import os
from pathlib import Path

SHARED = Path("/dev/shm")
"""Where processes of one machine share memory, by files."""


def namespace() -> int:
    """Of process ids: containers that share memory may have processes of the same ids."""
    return os.stat("/proc/self/ns/pid").st_ino


def identity(process: int) -> str:
    """Process id and start: no two processes of this machine have the same; empty if there is none
    of that id, or nothing but what its parent has not collected yet.
    """
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else f"{process}:{fields[19]}"


def lives(process: str) -> bool:
    """Whether the process with that `identity` is there."""
    return bool(process) and identity(int(process.partition(":")[0])) == process


def model_processes(server: int) -> dict[int, str]:
    """Process id -> model of the Python-backend processes that a tritonserver has started."""
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            if parent != server:
                continue
            arguments = (entry / "cmdline").read_bytes().decode().split("\0")
        except (OSError, IndexError):
            continue
        if "triton_python_backend_stub" in arguments[0] and len(arguments) > 1:
            found[int(entry.name)] = Path(arguments[1]).parts[-3]
    return found

"""The model processes of a tritonserver. Standard library only."""

from __future__ import annotations

from pathlib import Path


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

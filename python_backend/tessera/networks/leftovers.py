"""What a download may leave in the place of weights. Standard library only."""

from __future__ import annotations

_POINTER = b"version https://git-lfs"
_ZIP, _PICKLE = b"PK\x03\x04", b"\x80\x02"


def left_behind(beginning: bytes) -> str:
    """What a file is instead of safetensors; empty if that cannot be told.

    Args:
        beginning: its first bytes, 64 or more.
    """
    if beginning.startswith(_POINTER):
        return "a pointer of git-lfs (git lfs pull gets the file itself)"
    if beginning.lstrip().startswith(b"<"):
        return "a web page, not the file that it was to lead to"
    if beginning.startswith((_ZIP, _PICKLE)):
        return "a pickle under another name"
    return ""

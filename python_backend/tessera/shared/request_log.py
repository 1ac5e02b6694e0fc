"""One line of JSON on standard error for each request that has ended. Standard library only."""

from __future__ import annotations

import json
import os
import time
from enum import StrEnum
from typing import Any

_STDERR = 2
_LONGEST = 500
"""Characters of a text. Lines of less than 4096 bytes are written whole, whoever else writes."""


class LogFormat(StrEnum):
    """What is written about requests: nothing, or a line each."""

    TEXT = "text"
    JSON = "json"


def write(**entry: Any) -> None:
    """Write a line: the time, and what there is of the entry; fields that are `None` are left out.

    A log that cannot be written is no reason to fail a request.
    """
    now = time.time()
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now * 1e3) % 1000:03}Z"
    said = {name: _short(value) for name, value in entry.items() if value is not None}
    try:
        os.write(_STDERR, f"{json.dumps({'time': stamp} | said)}\n".encode())
    except OSError:
        return


def _short(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 3)
    return value[:_LONGEST] if isinstance(value, str) else value

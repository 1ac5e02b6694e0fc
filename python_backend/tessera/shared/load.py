"""What `denoise` has to do and what it has for that, for `jobs` to tell: a small file beside the
board, always whole. Standard library only.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tessera.shared.own_files import read_own, write_own


@dataclass(frozen=True)
class RunningLoad:
    """A request that is being denoised.

    Attributes:
        left: steps that are left.
        sparse: how many of these are sparse.
        branches: rows that it takes in a call.
        height, width: of its latents.
        active: latents that a sparse step computes.
        loras: names and weights of the LoRAs in the UNet, sorted.
        controls: names of its ControlNets.
    """

    job: str
    left: int
    sparse: int
    branches: int
    height: int
    width: int
    active: int
    loras: tuple[tuple[str, float], ...]
    controls: tuple[str, ...]


@dataclass(frozen=True)
class LoraLoad:
    """LoRAs that the UNet's process has.

    Attributes:
        merged: sets (names and weights) whose merged weights it keeps.
        current: the set in the UNet.
        parsed: names of those whose files it has read.
        side: whether different sets share its calls.
        refit_ms: moving average of refits.
    """

    merged: tuple[tuple[tuple[str, float], ...], ...] = ()
    current: tuple[tuple[str, float], ...] = ()
    parsed: tuple[str, ...] = ()
    side: bool = False
    refit_ms: float = 0.0


def write(path: Path, content: Mapping[str, Any]) -> None:
    """Publish the content in place of the old one. Only `denoise` calls it."""
    write_own(path, json.dumps(content, separators=(",", ":")).encode())


def read(path: Path) -> dict[str, Any]:
    """The latest content; empty if there is none yet."""
    try:
        content: dict[str, Any] = json.loads(read_own(path))
    except FileNotFoundError:
        return {}
    return content

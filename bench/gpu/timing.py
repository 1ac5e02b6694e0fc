"""Times of what a device does, and the result file of a step.

Variants take turns within a round, after calls that do not count, and their medians are compared:
whatever else the machine does falls on all of them.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

Call = Callable[[], Any]


@dataclass(frozen=True)
class Place:
    """Where networks run, and in which precision."""

    device: str
    dtype: torch.dtype

    @property
    def on_gpu(self) -> bool:
        """Whether it is an NVIDIA GPU."""
        return self.device == "cuda"

    def put(self, tensor: torch.Tensor, *, exact: bool = False) -> torch.Tensor:
        """A tensor there; its type is kept if `exact`, or if it holds integers."""
        keeps = exact or not tensor.is_floating_point()
        return tensor.to(self.device, tensor.dtype if keeps else self.dtype)


def place() -> Place:
    """The GPU in half precision, or the CPU in float32."""
    if torch.cuda.is_available():
        return Place("cuda", torch.float16)
    return Place("cpu", torch.float32)


class Report:
    """The result file of a step, written after every row: a step that is killed keeps its rows."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._rows: list[dict[str, Any]] = []
        self.details: dict[str, Any] = {"device": device_name(), "torch": torch.__version__}

    def add(self, **row: Any) -> None:
        """Add a row."""
        self._rows.append(row)
        self._path.write_text(json.dumps({**self.details, "rows": self._rows}))


@dataclass(frozen=True)
class Effort:
    """How often calls are timed.

    Attributes:
        rounds: of each call.
        seconds: after which no further round begins.
        warm: calls of each beforehand that do not count.
    """

    rounds: int
    seconds: float
    warm: int = 3


@dataclass(frozen=True)
class Options:
    """The command line of a step."""

    report: Report
    variant: str
    tiny: bool

    def effort(self, rounds: int = 15, seconds: float = 10.0) -> Effort:
        """As much as is asked for, or a single round of small networks."""
        return Effort(1, seconds, 1) if self.tiny else Effort(rounds, seconds)


def options(arguments: Sequence[str] | None = None) -> Options:
    """Read the command line of a step."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--variant", choices=("sd15", "sdxl"), default="sd15")
    parser.add_argument("--tiny", action="store_true")
    found = parser.parse_args(arguments)
    if not found.tiny and not torch.cuda.is_available():
        parser.error("torch finds no NVIDIA GPU; --tiny runs on a CPU")
    return Options(Report(found.out), found.variant, found.tiny)


def device_name() -> str:
    """The GPU's name, or `cpu`."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


def synchronise() -> None:
    """Wait until the device has done what was queued."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def milliseconds(call: Call) -> float:
    """Of one call, until the device has done its work."""
    synchronise()
    began = time.perf_counter()
    call()
    synchronise()
    return 1e3 * (time.perf_counter() - began)


def medians(calls: Mapping[str, Call], effort: Effort) -> dict[str, float]:
    """Median milliseconds of calls by name that take turns."""
    with torch.inference_mode():
        for call in calls.values():
            for _ in range(effort.warm):
                call()
        times: dict[str, list[float]] = {name: [] for name in calls}
        end = time.monotonic() + effort.seconds
        for number in range(effort.rounds):
            if number and time.monotonic() > end:
                break
            for name, call in calls.items():
                times[name].append(milliseconds(call))
    return {name: statistics.median(found) for name, found in times.items()}

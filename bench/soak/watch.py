"""What a server uses while it works."""

from __future__ import annotations

import statistics
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from bench.server import ALL_MODELS, Server
from tessera.shared.processes import model_processes

_EVERY_S = 2.0
_SHARED = Path("/dev/shm")
WITH_PROCESSES = frozenset(ALL_MODELS) - {"generate"}  # an ensemble runs in tritonserver
"""Models that a whole server has processes of."""
OURS = "tessera-serve"
"""The part that lives from the beginning to the end."""


@dataclass(frozen=True)
class Part:
    """What processes use together.

    Attributes:
        memory: bytes; pages shared by several processes are counted once.
        processes: how many.
        files: open file descriptors.
    """

    memory: int
    processes: int
    files: int


@dataclass(frozen=True)
class Seen:
    """One look at all processes of a server.

    Attributes:
        at: as `time.monotonic` has it.
        parts: what each model's processes use, and each program that is no model.
        shared: files of the server in shared memory.
    """

    at: float
    parts: Mapping[str, Part]
    shared: int

    @property
    def memory(self) -> int:
        """Bytes of all processes."""
        return sum(part.memory for part in self.parts.values())

    @property
    def files(self) -> int:
        """Open files of all processes."""
        return sum(part.files for part in self.parts.values())

    @property
    def processes(self) -> int:
        """How many."""
        return sum(part.processes for part in self.parts.values())

    @property
    def whole(self) -> bool:
        """Whether every model has a process. How much a server uses of which a part is missing
        says how long that was missing, not whether anything grows.
        """
        return self.parts.keys() >= WITH_PROCESSES


class Watch(threading.Thread):
    """Looks every two seconds until it is told to end."""

    def __init__(self, server: Server) -> None:
        super().__init__(daemon=True)
        self._server = server
        self._over = threading.Event()
        self.seen: list[Seen] = []

    def run(self) -> None:
        """Look, and look again."""
        while not self._over.wait(_EVERY_S):
            self.seen.append(look(self._server))

    def end(self) -> None:
        """Stop looking."""
        self._over.set()
        self.join()


def look(server: Server) -> Seen:
    """What its processes use now. One that ends meanwhile is left out."""
    memory, processes, files = Counter[str](), Counter[str](), Counter[str]()
    root = psutil.Process(server.process.pid)
    models: dict[int, str] = {}
    for child in root.children():
        models |= model_processes(child.pid)
    for each in [root, *root.children(recursive=True)]:
        try:
            if each.status() == psutil.STATUS_ZOMBIE:
                continue
            part = OURS if each == root else models.get(each.pid) or each.name()
            used, opened = each.memory_full_info().pss, each.num_fds()
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
        memory[part] += used
        files[part] += opened
        processes[part] += 1
    parts = {part: Part(memory[part], count, files[part]) for part, count in processes.items()}
    return Seen(time.monotonic(), parts, len(shared_memory(server)))


def shared_memory(server: Server) -> list[Path]:
    """Its files in shared memory."""
    return list(_SHARED.glob(f"tessera-run-*-{server.process.pid}-*"))


def growth(before: Sequence[float], after: Sequence[float]) -> float | None:
    """How much larger the median has become; `None` of something that was not there before."""
    middle = statistics.median(before) if before else 0.0
    return statistics.median(after) / middle - 1.0 if middle and after else None

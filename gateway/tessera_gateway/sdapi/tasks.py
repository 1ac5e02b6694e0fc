"""What runs for whom: webui has one queue and one progress, so here each key has one."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from tessera.contract import JobStatus
from tessera.errors import Cancelled, TesseraError
from tessera_client import Result
from tessera_gateway.cancelling import COMES_WITHIN_S, cancel_job
from tessera_gateway.drawing import Drawing, all_of, draw
from tessera_gateway.pictures import base64_of, encode
from tessera_gateway.state import Gateway


@dataclass(eq=False)
class Task:
    """One request that is drawn.

    Attributes:
        drawings: its pictures.
        ended: ids of those jobs of it that are over.
        interrupted: whether its caller asked for its end.
    """

    drawings: Sequence[Drawing]
    ended: set[str] = field(default_factory=set)
    interrupted: bool = False
    began: str = field(default_factory=lambda: time.strftime("%Y%m%d%H%M%S"))

    async def drawn(self, gateway: Gateway) -> list[Result | None]:
        """Its pictures, drawn at once; `None` for those that were interrupted.

        Raises:
            TesseraError: one could not be drawn; the others have been cancelled.
        """
        return await all_of(self._one(gateway, drawing) for drawing in self.drawings)

    async def _one(self, gateway: Gateway, drawing: Drawing) -> Result | None:
        try:
            return await draw(gateway, drawing)
        except Cancelled:
            return None
        finally:
            self.ended.add(drawing.job_id)

    async def interrupt(self, gateway: Gateway) -> None:
        """End what is not over yet; returns when that is done, or goes on for long."""
        self.interrupted = True
        left = [d.job_id for d in self.drawings if d.job_id not in self.ended]
        ends = [gateway.start(cancel_job(gateway, job)) for job in left]
        if ends:
            await asyncio.wait(ends, timeout=COMES_WITHIN_S)


class Tasks:
    """Requests that are drawn now, the oldest first, by the name of their caller's key."""

    def __init__(self) -> None:
        self._running: dict[str, list[Task]] = {}

    def of(self, key: str) -> list[Task]:
        """Those of a key."""
        return list(self._running.get(key, ()))

    @contextlib.contextmanager
    def running(self, key: str, drawings: Sequence[Drawing]) -> Iterator[Task]:
        """A task that is there as long as the body takes."""
        task = Task(drawings)
        self._running.setdefault(key, []).append(task)
        try:
            yield task
        finally:
            self._running[key].remove(task)
            if not self._running[key]:
                del self._running[key]


async def progress(gateway: Gateway, tasks: Sequence[Task], *, image: bool) -> dict[str, Any]:
    """GET progress: of the oldest task.

    Args:
        gateway: whose tasks they are.
        tasks: of one key.
        image: whether to show the picture so far.
    """
    if not tasks:
        return {
            "progress": 0.0,
            "eta_relative": 0.0,
            "state": _state(None, 0, None),
            "current_image": None,
            "textinfo": None,
        }
    task = tasks[0]
    left = [d.job_id for d in task.drawings if d.job_id not in task.ended]
    found = await asyncio.gather(*(_status(gateway, job) for job in left))
    known = [status for status in found if status]
    shown = known[0] if known else None
    done = len(task.ended) + sum(s.step / s.total for s in known if s.total)
    return {
        "progress": done / len(task.drawings),
        "eta_relative": max((s.seconds_left or 0.0 for s in known), default=0.0),
        "state": _state(task, len(tasks), shown),
        "current_image": await _preview(gateway, shown) if image and shown else None,
        "textinfo": None,
    }


def _state(task: Task | None, count: int, shown: JobStatus | None) -> dict[str, Any]:
    interrupted = task is not None and task.interrupted
    return {
        "skipped": False,
        "interrupted": interrupted,
        "stopping_generation": interrupted,
        "job": shown.job_id if shown else "",
        "job_count": count,
        "job_timestamp": task.began if task else "0",
        "job_no": 0,
        "sampling_step": shown.step if shown else 0,
        "sampling_steps": shown.total if shown else 0,
    }


async def _status(gateway: Gateway, job: str) -> JobStatus | None:
    try:
        return await gateway.client.status(job)
    except TesseraError:  # on its way to the server, or over meanwhile
        return None


async def _preview(gateway: Gateway, status: JobStatus) -> str | None:
    try:
        preview = await gateway.client.preview(status.job_id)
    except TesseraError:  # over meanwhile, or the bundle has none
        return None
    if preview is None:
        return None
    picture = Image.fromarray(preview.image)
    return await gateway.in_thread(lambda: base64_of(encode(picture)))

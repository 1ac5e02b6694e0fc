"""Jobs of a running server."""

from __future__ import annotations

import time
import urllib.request
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any

from bench.server import Server
from tessera.errors import UnknownJob
from tessera_client import Cancelled, Client, JobStatus
from tests.samples.waiting import PATIENCE_S

ENDLESS: dict[str, Any] = {"steps": 1000, "scheduler": "heun"}
"""Options of a picture that ends only because it is cancelled: 1999 ticks, more than any other."""

LONG_TICKS = {"width": 256, "height": 256}
"""Pictures of this size beside another one make its ticks long: there is time between two."""


def unique(name: str) -> str:
    """A job id that no other test uses."""
    return f"{name}-{uuid.uuid4().hex[:8]}"


def wait_for_step(client: Client, job_id: str, step: int) -> JobStatus:
    """Its status once it is there and has made so many steps."""
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        with suppress(UnknownJob):
            status = client.status(job_id)
            if status.step >= step:
                return status
        time.sleep(0.002)
    raise AssertionError(f"{job_id} never reached step {step}")


@contextmanager
def in_company(client: Client, jobs: int = 1, **options: Any) -> Iterator[None]:
    """So many pictures are denoised from before the block until it ends, however fast the machine:
    whatever has their adapters shares its ticks with them.

    Args:
        client: of the server.
        jobs: how many; as many as there are slots keep all others waiting.
        options: of these pictures; they have the highest priority, so that they keep their slots.
    """
    options = {"priority": 1, **options}
    names = [unique("company") for _ in range(jobs)]
    with ThreadPoolExecutor(jobs) as pool:
        drawn = [
            pool.submit(client.generate, "a", job_id=name, timeout=3600, **ENDLESS, **options)
            for name in names
        ]
        try:
            for name in names:
                wait_for_step(client, name, 1)
            yield
            assert not any(each.done() for each in drawn), "the company went early"
        finally:
            for name in names:
                client.cancel(name)
        for each in drawn:
            assert isinstance(each.exception(), Cancelled)


def end_all(client: Client, names: Sequence[str], drawn: Sequence[Future[Any]]) -> None:
    """Cancel jobs until each has ended; one that waits in a queue of Triton's is not known yet."""
    while not all(each.done() for each in drawn):
        for name, each in zip(names, drawn, strict=True):
            if not each.done():
                with suppress(UnknownJob):
                    client.cancel(name)


def waiting(server: Server, model: str) -> int:
    """Number of requests in one of Triton's queues."""
    url = f"http://localhost:{server.metrics_port}/metrics"
    lines = urllib.request.urlopen(url, timeout=30).read().decode().splitlines()
    name = f'nv_inference_pending_request_count{{model="{model}",'
    return sum(int(line.split()[-1]) for line in lines if line.startswith(name))

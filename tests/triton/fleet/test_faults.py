"""The front is killed. Workers and their jobs stay."""

from __future__ import annotations

import threading
import time
from pathlib import Path

from bench.server import Server
from tessera.errors import UnknownJob
from tessera_client import Client
from tests.samples.fleets import RunningFleet, fleet_of
from tests.samples.jobs import ENDLESS
from tests.samples.waiting import PATIENCE_S


def phase(client: Client, job: str) -> str:
    try:
        return client.status(job).phase
    except UnknownJob:
        return "unknown"


def wait_for(client: Client, job: str, wanted: str) -> None:
    end = time.monotonic() + PATIENCE_S
    while (found := phase(client, job)) != wanted:
        assert time.monotonic() < end, found
        time.sleep(0.05)


def begun(fleet: RunningFleet, jobs: list[str], errors: list[Exception]) -> list[threading.Thread]:
    """Clients that wait for pictures, which are being drawn and take longer than another front
    needs to start.
    """

    def draw(job: str, url: str) -> None:
        try:
            with Client(url, timeout=3600, retries=0) as client:
                client.generate("a circle", job_id=job, **ENDLESS)
        except Exception as error:
            errors.append(error)

    urls = (fleet.http, fleet.grpc) * len(jobs)
    threads = [threading.Thread(target=draw, args=pair) for pair in zip(jobs, urls, strict=False)]
    for thread in threads:
        thread.start()
    with Client(fleet.grpc, timeout=PATIENCE_S) as client:
        for job in jobs:
            wait_for(client, job, "denoising")
    return threads


def test_a_front_that_is_killed_loses_what_it_waited_for(server: Server, tmp_path: Path) -> None:
    """Nothing else: the jobs go on, and the next front finds them by their ids."""
    address = {
        "grpc": f"127.0.0.1:{server.grpc_port}",
        "http": f"127.0.0.1:{server.http_port}",
    }
    jobs, errors = ["killed-0", "killed-1", "killed-2"], list[Exception]()
    with fleet_of(tmp_path, 1, servers=[address]) as first:
        threads = begun(first, jobs, errors)
        first.process.kill()
        first.process.wait()
        for thread in threads:
            thread.join()
        assert len(errors) == 3
    with fleet_of(tmp_path, 1, servers=[address]) as second, second.clients() as clients:
        assert second.about()["workers"][0]["running"] == 3
        for job, client in zip(jobs, clients * 2, strict=False):
            assert phase(client, job) == "denoising"
            client.cancel(job)
        for job in jobs:
            wait_for(clients[1], job, "cancelled")
        assert clients[0].generate("a circle", steps=2).info.worker

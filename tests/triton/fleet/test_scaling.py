"""A fleet whose number of workers follows the work: none, one, two, and none again."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from bench.server import Server
from tessera_client import Client
from tests.samples.fleets import RunningFleet, fleet_of
from tests.samples.waiting import until

pytest.importorskip("ray", reason="Ray is not installed: pip install '.[ray]'")


@pytest.mark.timeout(1200)
def test_workers_come_and_go_and_nothing_is_lost(
    bundle: Path, server: Server, tmp_path: Path
) -> None:
    settings = {
        "bundle": str(bundle),
        "cpus": 0.5,
        "serve": ["--threads", "1"],
        "templates": str(tmp_path / "templates"),
        "shared_templates": True,
        "autoscaling": {
            "min": 0,
            "max": 2,
            "target_seconds": 0.5,
            "up_delay": 1,
            "down_delay": 3,
        },
    }
    with fleet_of(tmp_path, 0, **settings) as fleet:
        with Client(fleet.grpc, timeout=300, retries=0) as client:
            assert client.generate("a red circle", steps=2).info.worker
        assert len(_under_load_until(fleet, 2)) == 2
        fleet.wait(0)


def _under_load_until(fleet: RunningFleet, workers: int) -> set[str]:
    """The workers that have drawn for clients that ask on and on until so many have."""
    enough = threading.Event()
    drawn: set[str] = set()

    def draw(url: str) -> None:
        with Client(url, timeout=300, retries=0) as client:
            while not enough.is_set():
                drawn.add(client.generate("a circle", steps=30).info.worker)

    with ThreadPoolExecutor(6) as pool:
        asking = [pool.submit(draw, url) for url in (fleet.http, fleet.grpc) * 3]
        try:
            fleet.wait(workers)
            until(lambda: len(drawn) >= workers or any(each.done() for each in asking), 240)
        finally:
            enough.set()
        for each in asking:
            each.result()
    return drawn

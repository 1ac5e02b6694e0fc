"""A fleet of two servers that run already, of which one is the other tests' single server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.server import Server, serving
from tessera_client import Client
from tests.samples.fleets import RunningFleet, fleet_of


@pytest.fixture(scope="package")
def fleet(
    bundle: Path, server: Server, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningFleet]:
    folder = tmp_path_factory.mktemp("fleet")
    with serving(bundle, folder / "log", f"--templates={folder / 'templates'}") as second:
        servers = [
            {"grpc": f"127.0.0.1:{each.grpc_port}", "http": f"127.0.0.1:{each.http_port}"}
            for each in (server, second)
        ]
        with fleet_of(folder, 2, servers=servers) as running:
            yield running


@pytest.fixture(params=["http", "grpc"])
def through(fleet: RunningFleet, request: pytest.FixtureRequest) -> Iterator[Client]:
    with Client(getattr(fleet, request.param), timeout=600, retries=0) as client:
        yield client

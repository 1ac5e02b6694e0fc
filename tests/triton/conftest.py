"""One real Triton server on the demo bundle for all tests, on free ports, through tessera-serve."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.server import DEMO_BUNDLE, ROOT, Server, serving
from tessera_client import Client


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.triton)


@pytest.fixture(scope="session")
def bundle() -> Path:
    """The demo bundle, built when it is missing or stale."""
    environment = os.environ | {"PYTHONWARNINGS": "ignore"}
    build = [str(Path(sys.executable).parent / "tessera-build"), "demo", "--out", str(DEMO_BUNDLE)]
    subprocess.run(build, check=True, cwd=ROOT, env=environment)
    return DEMO_BUNDLE


@pytest.fixture(scope="session")
def server(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Takes LoRAs from the folder `adapters` beside its log, too."""
    folder = tmp_path_factory.mktemp("server")
    (folder / "adapters").mkdir()
    with serving(bundle, folder / "log", f"--adapters={folder / 'adapters'}") as running:
        yield running


@pytest.fixture(params=["http", "grpc"])
def client(server: Server, request: pytest.FixtureRequest) -> Iterator[Client]:
    """A client over each protocol."""
    with Client(getattr(server, request.param), timeout=120) as opened:
        yield opened


@pytest.fixture
def http_client(server: Server) -> Iterator[Client]:
    with Client(server.http, timeout=120) as opened:
        yield opened

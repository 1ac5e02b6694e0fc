"""A real Triton server on the demo bundle for most tests, on free ports, through tessera-serve."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from bench.server import DEMO_BUNDLE, Server
from tessera_build.cli import app
from tessera_client import Client
from tests.samples.servers import ended_whole


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.triton)


@pytest.fixture(scope="session")
def bundle() -> Path:
    """The demo bundle, built when it is missing or stale."""
    built = CliRunner().invoke(app, ["demo", "--out", str(DEMO_BUNDLE)], catch_exceptions=False)
    assert built.exit_code == 0, built.output
    return DEMO_BUNDLE


@pytest.fixture(scope="session")
def server(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Takes LoRAs from the folder `adapters` beside its log, too."""
    folder = tmp_path_factory.mktemp("server")
    (folder / "adapters").mkdir()
    with ended_whole(bundle, folder / "log", f"--adapters={folder / 'adapters'}") as running:
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

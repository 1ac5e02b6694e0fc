"""A real Triton server on the demo bundle for most tests, on free ports, through tessera-serve."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from bench.server import DEMO_BUNDLE, Server
from tessera_build.cli import app
from tessera_client import Client
from tests.samples.servers import ended_whole

HERE = Path(__file__).parent
LONGEST = (
    "test_soak.py",
    "test_variants.py",
    "test_faults.py",
    "test_serve.py",
    "fleet/test_ray_serve.py",
    "fleet/test_scaling.py",
    "test_generate.py",
    "test_gpu_scripts.py",
    "test_tensorrt_check.py",
    "test_controls.py",
    "fleet/test_picker.py",
    "test_forms.py",
    "fleet/test_front.py",
    "fleet/test_clients.py",
)
"""Files that take a minute or more, by what they take: begun last, they would keep one process
alone at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With `--dist loadfile --no-loadscope-reorder` processes take files in this order."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.triton)
    assert all((HERE / name).exists() for name in LONGEST)
    items.sort(key=_rank)


def _rank(item: pytest.Item) -> int:
    name = os.path.relpath(item.path, HERE)
    return LONGEST.index(name) if name in LONGEST else len(LONGEST)


@pytest.fixture(scope="session")
def bundle() -> Path:
    """The demo bundle, built when it is missing or stale. Of several processes, one builds it."""
    DEMO_BUNDLE.parent.mkdir(parents=True, exist_ok=True)
    with (DEMO_BUNDLE.parent / ".demo.wanted").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        line = ["demo", "--out", str(DEMO_BUNDLE)]
        built = CliRunner().invoke(app, line, catch_exceptions=False)
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
    with Client(getattr(server, request.param), timeout=300) as opened:
        yield opened


@pytest.fixture
def http_client(server: Server) -> Iterator[Client]:
    with Client(server.http, timeout=300) as opened:
        yield opened

"""A gateway in front of the server, and one with keys."""

from __future__ import annotations

import base64
from collections.abc import Iterator

import pytest

from bench.server import Server
from tessera_gateway.keys import make_key
from tests.samples.gateways import gateway
from tests.samples.sdapi import FrontEnd


@pytest.fixture(scope="session")
def webui(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FrontEnd]:
    with gateway(server.grpc, tmp_path_factory.mktemp("gateway") / "log") as running:
        yield FrontEnd(running.url)


@pytest.fixture(scope="session")
def guarded(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[FrontEnd]]:
    """Two front ends with keys of their own, and one without."""
    folder = tmp_path_factory.mktemp("guarded")
    made = [make_key(name) for name in ("first", "second")]
    (folder / "keys.toml").write_text("".join(lines for _, lines in made))
    with gateway(server.grpc, folder / "log", f"--keys={folder / 'keys.toml'}") as running:
        basic = base64.b64encode(f"user:{made[1][0]}".encode()).decode()
        yield [
            FrontEnd(running.url, {"Authorization": f"Bearer {made[0][0]}"}),
            FrontEnd(running.url, {"Authorization": f"Basic {basic}"}),
            FrontEnd(running.url),
        ]

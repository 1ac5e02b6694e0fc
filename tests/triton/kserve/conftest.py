"""A gateway in front of the server, without keys and with."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.server import Server
from tessera_gateway.keys import make_key
from tests.samples.gateways import Guarded, RunningGateway, gateway


@pytest.fixture(scope="session")
def kserve(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    log = tmp_path_factory.mktemp("gateway") / "log"
    with gateway(server.grpc, log, f"--kserve={server.http}") as running:
        yield running


@pytest.fixture(scope="session")
def guarded(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    folder: Path = tmp_path_factory.mktemp("guarded")
    token, lines = make_key("mine")
    operator, more = make_key("operator")
    (folder / "keys.toml").write_text(f"{lines}in_flight = 2\n{more}operator = true\n")
    flags = (f"--kserve={server.http}", f"--keys={folder / 'keys.toml'}")
    with gateway(server.grpc, folder / "log", *flags) as running:
        yield Guarded(running, token, operator)

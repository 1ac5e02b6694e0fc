"""The application in front of a fake server."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from starlette.testclient import TestClient

from tessera_gateway.app import create_app
from tessera_gateway.settings import GatewaySettings
from tests.fakes.transport import AsyncFakeTransport


@pytest.fixture
def transport() -> AsyncFakeTransport:
    return AsyncFakeTransport()


@pytest.fixture
def http(transport: AsyncFakeTransport) -> Iterator[TestClient]:
    settings = GatewaySettings(max_body=100_000, max_pixels=10_000, cors=("https://mine.example",))
    with TestClient(create_app(settings, transport=transport)) as client:
        yield client

"""Clients that neither wait before they try again nor between questions."""

from __future__ import annotations

import pytest

from tessera_client import aio_connection, connection


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (connection, aio_connection):
        monkeypatch.setattr(module, "RETRY_S", 0.0)
        monkeypatch.setattr(module, "POLL_S", 0.01)

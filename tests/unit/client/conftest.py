"""Clients that neither wait before they try again nor between questions."""

from __future__ import annotations

import pytest

from tessera_client import aio, client


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (client, aio):
        monkeypatch.setattr(module, "RETRY_S", 0.0)
        monkeypatch.setattr(module, "POLL_S", 0.01)

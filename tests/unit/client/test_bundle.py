"""What is served, and the priority of a request."""

from __future__ import annotations

import asyncio

import pytest

from tessera_client import AsyncClient, Client, ServedBundle
from tessera_client.orders import generation
from tests.fakes.transport import BUNDLE, AsyncFakeTransport, FakeTransport


def test_the_bundle_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BUNDLE, "news_of_a_later_server", 1)

    async def ask() -> ServedBundle:
        async with AsyncClient(transport=AsyncFakeTransport()) as client:
            return await client.bundle()

    with Client(transport=FakeTransport()) as client:
        bundle = client.bundle()
    assert (bundle.name, bundle.max_size, bundle.controlnets) == ("demo", 64, ["edges"])
    assert bundle.defaults["steps"] == 20
    assert asyncio.run(ask()) == bundle


def test_a_priority_is_sent() -> None:
    urgent = generation("a", {"priority": 1}).order("j").call
    usual = generation("a", {}).order("j").call
    assert urgent.settings(1.0) == {"timeout": 2_000_000, "priority": 1, "job_priority": 1}
    assert usual.settings(1.0) == {"timeout": 2_000_000}

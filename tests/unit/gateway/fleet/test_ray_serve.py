"""What the process of a fleet does whose workers Ray starts, without Ray."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from typing import Any
from unittest.mock import MagicMock

import pytest

from tessera_gateway.fleet.settings import FleetSettings

pytest.importorskip("ray", reason="Ray is not installed: pip install '.[ray]'")
SIGNALS = (signal.SIGHUP, signal.SIGTERM, signal.SIGINT)


@pytest.fixture
def signals() -> Iterator[None]:
    """Handlers are as they were afterwards."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Ray's own code
@pytest.mark.parametrize("fails", [False, True])
def test_sighup_has_the_front_read_its_keys(
    fails: bool, signals: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tessera_gateway.fleet import ray_serve

    fakes = {name: MagicMock() for name in ("ray", "serve", "directory", "application", "_connect")}
    for name, fake in fakes.items():
        monkeypatch.setattr(ray_serve, name, fake)
    monkeypatch.setattr(ray_serve, "ASKS_EVERY_S", 0.01)
    told = fakes["serve"].get_app_handle.return_value.reload_keys.remote.return_value.result

    def ask(*_: Any, **__: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM if told.called else signal.SIGHUP)

    fakes["ray"].get.side_effect = ask
    told.side_effect = TimeoutError if fails else None
    ray_serve.run(FleetSettings(bundle="b"))
    assert told.called
    fakes["serve"].get_app_handle.assert_called_with(ray_serve.FRONT)

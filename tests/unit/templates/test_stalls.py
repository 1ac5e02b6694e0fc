"""Storage that stalls, as a network's does: nobody waits for long."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from tessera.templates import store as module
from tessera.templates.files import Patience
from tessera.templates.store import Recording, RecordingKey, TemplateStore
from tests.samples.templates import filled, key_of
from tests.samples.waiting import PATIENCE_S, comes


def test_who_waits_too_long_gets_nothing() -> None:
    patience, going_on = Patience(0.05), threading.Event()
    comes(lambda: patience.read(lambda: 1) == 1)
    comes(lambda: patience.read(going_on.wait) is None)
    assert patience.read(lambda: pytest.fail("the other is still reading")) is None
    going_on.set()
    comes(lambda: patience.read(lambda: 2) == 2)


def test_what_goes_wrong_is_told() -> None:
    with pytest.raises(OSError, match="no"):
        Patience(PATIENCE_S).read(lambda: (_ for _ in ()).throw(OSError("no")))


def test_a_recording_on_storage_that_stalls_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "STALLED_S", 0.05)
    store, going_on = TemplateStore(tmp_path, budget=10**9), threading.Event()
    filled(store, key_of())

    def stalled(key: RecordingKey) -> Recording | None:
        going_on.wait()
        return None

    monkeypatch.setattr(store, "_find", stalled)
    assert store.find(key_of()) is None
    going_on.set()

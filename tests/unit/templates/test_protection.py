"""What clients have registered: it goes last, and stays so when a recording is damaged."""

from __future__ import annotations

import contextlib
import os
import time

import pytest

from tessera.templates import protection
from tessera.templates.store import Damaged, TemplateStore
from tests.samples.templates import filled, key_of


def test_what_clients_have_registered_goes_last(
    store: TemplateStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Edits that come once, with a prompt of their own each, push it out otherwise."""
    registered = filled(store, key_of("a"))
    store.register(registered)
    small = TemplateStore(store.root, budget=2 * registered.bytes)
    os.utime(registered.folder / "recording.json", (time.time() - 100, time.time() - 100))
    for name in "bcd":
        filled(small, key_of(name))
        assert {r.key.template for r in small.recordings()} == {"a", name}
    assert small.has_room(registered.bytes)
    assert not small.has_room(registered.bytes + 1)
    small.register(filled(small, key_of("e")))
    assert not small.has_room(1)
    filled(small, key_of("f"))  # what a client waits for has room in any case
    assert {r.key.template for r in small.recordings()} == {"e", "f"}
    monkeypatch.setattr(protection, "PROTECTED_S", -1.0)  # not used for long
    assert small.has_room(2 * registered.bytes)
    filled(small, key_of("g"))
    assert {r.key.template for r in small.recordings()} == {"f", "g"}


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        ("0002.safetensors", b"x"),
        ("0002.safetensors", None),
        ("recording.json", b"{"),
        ("recording.json", b'{"key": {}}'),
        ("recording.json", None),
    ],
)
def test_what_a_client_has_registered_stays_so_when_it_is_made_again(
    store: TemplateStore, file: str, damage: bytes | None
) -> None:
    recording = filled(store, key_of("a"))
    store.register(recording)
    path = recording.folder / file
    path.unlink() if damage is None else path.write_bytes(damage)
    with contextlib.suppress(Damaged):
        store.load(store.find(key_of("a")) or recording, 2)
    assert store.find(key_of("a")) is None
    store.budget = recording.bytes
    assert store.has_room(recording.bytes), "it is not there"
    filled(TemplateStore(store.root, budget=store.budget), key_of("a"))
    assert not store.has_room(1)
    store.remove(recording)
    filled(store, key_of("a"))
    assert store.has_room(recording.bytes), "it was evicted"


def test_a_registration_that_waits_is_forgotten_after_a_week(
    store: TemplateStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protection, "PROTECTED_S", 1000.0)
    for name in "ab":
        recording = filled(store, key_of(name))
        store.register(recording)
        recording.file(0).unlink()
        with pytest.raises(Damaged):
            store.load(recording, 0)
        (mark,) = (store.root / "registered").iterdir()
        assert mark.name == recording.key.digest
        os.utime(mark, (1, 1))
    filled(store, key_of("b"))
    assert store.has_room(store.budget)
    assert not list((store.root / "registered").iterdir())

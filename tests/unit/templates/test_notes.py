"""Notes of what is wanted: not too many, not for ever, and until they are done."""

from __future__ import annotations

import os

import pytest

from tessera.templates import notes
from tessera.templates.store import RecordingKey, TemplateStore
from tests.samples.templates import key_of


def test_what_is_wanted_is_not_remembered_for_ever(
    store: TemplateStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notes, "WANTED", 2)
    for number, name in enumerate("abc"):
        store.notes.put(key_of(name))
        for path in (store.root / "wanted").glob("*.json"):
            stamp = path.stat().st_mtime - 10  # older than what comes next
            os.utime(path, (stamp, stamp))
        assert len(list((store.root / "wanted").iterdir())) == min(number + 1, 2)
    assert [k.template for k in store.notes.keys("bundle")] == ["c", "b"]
    monkeypatch.setattr(notes, "WANTED_S", 15.0)
    assert [k.template for k in store.notes.keys("bundle")] == ["c"]


def test_what_is_wanted_is_remembered_until_it_is_done(store: TemplateStore) -> None:
    store.notes.put(key_of("a"))
    store.notes.put(key_of("b"))
    store.notes.put(key_of("b"))
    store.notes.put(RecordingKey("another bundle", "c", "euler", 4, 0))
    assert {k.template for k in store.notes.keys("bundle")} == {"a", "b"}
    store.notes.remove(key_of("a"))
    assert [k.template for k in store.notes.keys("bundle")] == ["b"]


def test_what_is_wanted_again_is_told_from_what_came_once(store: TemplateStore) -> None:
    for name in "abcb":
        store.notes.put(key_of(name))
    assert [k.template for k in store.notes.keys("bundle", again=True)] == ["b"]
    assert {k.template for k in store.notes.keys("bundle")} == {"a", "b", "c"}
    store.notes.put(key_of("b"))
    assert [k.template for k in store.notes.keys("bundle", again=True)] == ["b"]
    store.notes.remove(key_of("b"))
    store.notes.put(key_of("b"))
    assert not store.notes.keys("bundle", again=True)

"""Notes of recordings that requests will need."""

from __future__ import annotations

import os

import pytest

from tessera.templates import notes as module
from tessera.templates.store import RecordingKey, TemplateStore
from tests.samples.templates import key_of


def test_what_is_wanted_is_not_remembered_for_ever(
    store: TemplateStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "WANTED", 2)
    for number, name in enumerate("abc"):
        store.want(key_of(name))
        for path in (store.root / "wanted").glob("*.json"):
            stamp = path.stat().st_mtime - 10  # older than what comes next
            os.utime(path, (stamp, stamp))
        assert len(list((store.root / "wanted").iterdir())) == min(number + 1, 2)
    assert [k.template for k in store.wanted("bundle")] == ["c", "b"]
    monkeypatch.setattr(module, "WANTED_S", 15.0)
    assert [k.template for k in store.wanted("bundle")] == ["c"]


def test_what_is_wanted_is_remembered_until_it_is_done(store: TemplateStore) -> None:
    store.want(key_of("a"))
    store.want(key_of("b"))
    store.want(key_of("b"))
    store.want(RecordingKey("another bundle", "c", "euler", 4, 0))
    assert {k.template for k in store.wanted("bundle")} == {"a", "b"}
    store.done(key_of("a"))
    assert [k.template for k in store.wanted("bundle")] == ["b"]

"""Lists of thousands: what other processes add, use and evict shows, and nothing is read twice."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import numpy as np
import pytest

from tessera.templates import store as store_module
from tessera.templates.files import by_use, names
from tessera.templates.store import Recording, TemplateStore
from tests.samples.templates import filled, key_of


def listed(store: TemplateStore) -> list[str]:
    return [recording.key.template for recording in store.recordings()]


def picture(value: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return np.full((8, 8, 3), value, np.uint8)


@pytest.fixture
def read(store: TemplateStore, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the recordings that the store reads from now on."""
    found, whole = list[str](), store._read

    def counting(folder: Path) -> Recording | None:
        found.append(folder.name)
        return whole(folder)

    monkeypatch.setattr(store, "_read", counting)
    return found


def test_what_another_process_adds_uses_and_evicts_shows(store: TemplateStore) -> None:
    other = TemplateStore(store.root, budget=1 << 30)
    for number, name in enumerate("abc"):
        recording = filled(other, key_of(name))
        os.utime(recording.folder / "recording.json", (number, number))
    assert listed(store) == ["c", "b", "a"]
    assert other.find(key_of("a")) is not None
    assert listed(store) == ["a", "c", "b"]
    other.evict("c")
    assert listed(store) == ["a", "b"]
    os.utime(store.root / "recordings" / key_of("a").digest / "recording.json", (5, 5))
    filled(other, key_of("c"))
    assert listed(store)[0] == "c"


def test_a_recording_is_read_once_until_it_is_used(store: TemplateStore, read: list[str]) -> None:
    digests = [filled(store, key_of(name)).key.digest for name in "ab"]
    store.recordings()
    read.clear()
    store.recordings()
    assert read == []
    os.utime(store.root / "recordings" / digests[0] / "recording.json", (5, 5))
    store.recordings()
    assert read == [digests[0]]


def test_an_image_is_kept_without_a_look_at_recordings_that_are_known(
    store: TemplateStore, read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "UNRECORDED", 1)
    recorded = store.keep(picture(0))
    filled(store, key_of(recorded))
    kept = [store.keep(picture(value)) for value in (1, 2)]
    assert set(store.pictures.known()) == {recorded, kept[-1]}
    manifest = store.root / "recordings" / key_of(recorded).digest / "recording.json"
    os.utime(manifest, (5, 5))  # used since
    read.clear()
    last = store.keep(picture(3))
    assert set(store.pictures.known()) == {recorded, last}
    assert read == []


def test_recordings_of_another_process_keep_their_pictures(
    store: TemplateStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "UNRECORDED", 1)
    other = TemplateStore(store.root, budget=1 << 30)
    first = store.keep(picture(0))
    filled(other, key_of(first))
    second = store.keep(picture(1))
    assert {first, second} == set(store.pictures.known())
    other.evict(first)
    store.pictures.put(picture(0))
    os.utime(store.pictures.root / f"{first}.npy", (0, 0))
    third = store.keep(picture(2))
    assert set(store.pictures.known()) == {third}, "evicted ones protect nothing"


def test_folders_of_a_crash_are_none(store: TemplateStore) -> None:
    filled(store, key_of("a"))
    folder = store.root / "recordings"
    (folder / "without-a-manifest").mkdir()
    (folder / ".temporary").mkdir()
    (folder / "a-file").write_text("")
    assert listed(store) == ["a"]
    assert "without-a-manifest" in names(folder)
    assert by_use(folder, ["gone/recording.json"]) == []
    assert names(folder / "gone") == []
    assert by_use(folder / "gone", ["x"]) == []


def test_lists_while_others_register_and_evict(store: TemplateStore) -> None:
    """No list fails, and each has what was there all the time."""
    filled(store, key_of("stays"))
    other, done = TemplateStore(store.root, budget=1 << 30), threading.Event()

    def change() -> None:
        for turn in range(30):
            filled(other, key_of(f"t{turn % 3}"))
            other.evict(f"t{(turn + 1) % 3}")
        done.set()

    thread = threading.Thread(target=change)
    thread.start()
    while not done.is_set():
        assert "stays" in listed(store)
        store.keep(picture(1))
    thread.join()
    assert sorted(listed(store)) == sorted(listed(TemplateStore(store.root, budget=1)))

"""Storage that stalls, as a network's does, or has pipes for files: nobody waits for long."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
import torch

from tessera.errors import InvalidInput, Unavailable
from tessera.templates import store as module
from tessera.templates.files import Patience, read, read_ahead
from tessera.templates.pictures import Pictures, find_picture
from tessera.templates.store import Damaged, Recording, RecordingKey, TemplateStore
from tests.samples.templates import PICTURE, filled, key_of
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


def test_a_picture_on_storage_that_stalls_is_unavailable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures, going_on = Pictures(tmp_path), threading.Event()
    identity, _ = pictures.put(PICTURE)
    monkeypatch.setattr(pictures, "get", lambda identity: going_on.wait())
    with pytest.raises(Unavailable, match="storage of templates does not answer; try again later"):
        find_picture(pictures, identity, patience=Patience(0.05))
    going_on.set()


def test_nobody_waits_for_what_is_read_ahead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does a second one begin beside it, or keep recordings from being found."""
    store, going_on, begun = TemplateStore(tmp_path, budget=10**9), threading.Event(), list[int]()
    recording = filled(store, key_of())

    def stalled(paths: list[Path]) -> None:
        begun.append(len(paths))
        going_on.wait()

    monkeypatch.setattr(module, "read_ahead", stalled)
    for _ in range(2):
        store.read_ahead(recording, [0, 1])
    comes(lambda: begun == [2])
    assert store.find(key_of()) == recording
    going_on.set()


def pipe(path: Path) -> None:
    """In the place of a file; whoever opens it waits until somebody writes to it."""
    path.unlink()
    os.mkfifo(path)


def test_a_pipe_in_the_place_of_a_picture_is_none(store: TemplateStore) -> None:
    identity = store.keep(PICTURE)
    pipe(store.root / "pictures" / f"{identity}.npy")
    with pytest.raises(InvalidInput):
        find_picture(store.pictures, identity)
    assert store.pictures.size_of(identity) == (0, 0)
    assert store.keep(PICTURE) == identity
    assert (find_picture(store.pictures, identity) == PICTURE).all()


def test_a_pipe_in_the_place_of_a_step_is_a_step_that_is_missing(store: TemplateStore) -> None:
    recording = filled(store, key_of())
    pipe(recording.file(1))
    read_ahead([recording.file(step) for step in (0, 1)])
    with pytest.raises(Damaged, match="is no regular file"):
        store.load(recording, 1)
    assert store.find(key_of()) is None


@pytest.mark.parametrize("what", ["recordings/*/recording.json", "texts/*", "wanted/*"])
def test_a_pipe_in_the_place_of_any_other_file_is_none(store: TemplateStore, what: str) -> None:
    key = key_of()
    filled(store, key)
    store.texts.put(key.digest, {"hidden": torch.ones(2)})
    store.notes.put(key)
    assert (store.find(key), store.texts.get(key.digest), store.notes.keys("bundle")) != (
        None,
        None,
        [],
    )
    (path,) = store.root.glob(what)
    pipe(path)
    found = {
        "recordings/*/recording.json": store.find(key) is None and not store.recordings(),
        "texts/*": store.texts.get(key.digest) is None,
        "wanted/*": not store.notes.keys("bundle"),
    }
    assert found[what]


def test_files_of_devices_and_folders_are_not_read(tmp_path: Path) -> None:
    for path in (Path("/dev/zero"), tmp_path):
        with pytest.raises(FileNotFoundError):
            read(path)
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    assert read(tmp_path / "link") == b"content"

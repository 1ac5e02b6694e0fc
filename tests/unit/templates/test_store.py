"""Recordings and pictures on disk: whole, current, and within the budget."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tessera.templates import files as files_module
from tessera.templates import store as store_module
from tessera.templates.files import locked
from tessera.templates.storage import Storage
from tessera.templates.store import Damaged, RecordingKey, TemplateStore
from tessera.types import Tensors
from tests.samples.templates import PICTURE, arrays, filled, key_of
from tests.samples.waiting import PATIENCE_S


class TestStore:
    """Recordings and pictures on disk."""

    def test_what_was_written_is_found_and_read(self, store: TemplateStore, tmp_path: Path) -> None:
        key = key_of()
        assert store.find(key) is None
        written = filled(store, key)
        again = TemplateStore(tmp_path, budget=1).find(key)
        assert again == written
        for step in range(4):
            loaded = store.load(written, step)
            for name, array in arrays(step).items():
                assert torch.equal(loaded[name], array)

    def test_files_are_on_the_disk_before_they_have_their_names(
        self, store: TemplateStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A crash of the machine would leave names without content otherwise. What a request writes
        does not wait for the disk: its damage is found, and it is written again.
        """
        synced: dict[int, int] = {}

        def fsync(descriptor: int) -> None:
            status = os.fstat(descriptor)
            assert Path(f"/proc/self/fd/{descriptor}").readlink().name.startswith(".")
            synced[status.st_ino] = status.st_size

        monkeypatch.setattr(os, "fsync", fsync)
        identity, _ = store.pictures.put(PICTURE)
        store.texts.put("text", {"hidden": torch.zeros(2)})
        folder = filled(store, key_of(identity)).folder
        files = list(folder.iterdir())
        assert {path.stat().st_ino: path.stat().st_size for path in files} == synced

    @pytest.mark.parametrize("damage", [b"", b"{}"])
    def test_damaged_embeddings_are_written_again(
        self, store: TemplateStore, damage: bytes
    ) -> None:
        store.texts.put("text", {"hidden": torch.ones(2)})
        (path,) = (path for path in store.root.rglob("text.*") if path.is_file())
        path.write_bytes(damage)
        assert store.texts.get("text") is None
        store.texts.put("text", {"hidden": torch.ones(2)})
        assert store.texts.get("text") is not None

    @pytest.mark.parametrize(
        "other",
        [
            key_of("u"),
            key_of(steps=5),
            RecordingKey("bundle", "t", "ddim", 4, 0),
            RecordingKey("bundle", "t", "euler", 4, 1),
            RecordingKey("other", "t", "euler", 4, 0),
        ],
        ids=["picture", "steps", "scheduler", "seed", "bundle"],
    )
    def test_another_key_is_another_recording(
        self, store: TemplateStore, other: RecordingKey
    ) -> None:
        filled(store, key_of())
        assert store.find(other) is None

    @pytest.mark.parametrize("damage", ["bit", "cut", "gone", "other", "grown"])
    def test_a_damaged_file_is_not_served_and_the_recording_goes(
        self, store: TemplateStore, damage: str
    ) -> None:
        recording = filled(store, key_of())
        path = recording.file(2)
        content = bytearray(path.read_bytes())
        if damage == "bit":
            content[len(content) // 2] ^= 1
        elif damage == "cut":
            del content[-1]
        elif damage == "grown":
            content += b"x"
        elif damage == "other":
            content = bytearray(recording.file(1).read_bytes())
        path.write_bytes(content)
        if damage == "gone":
            path.unlink()
        store.load(recording, 0)
        with pytest.raises(Damaged):
            store.load(recording, 2)
        assert store.find(key_of()) is None
        filled(store, key_of())
        store.load(recording, 2)

    @pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"key": {}}', b"\xff"])
    def test_a_foreign_manifest_is_no_recording(self, store: TemplateStore, content: bytes) -> None:
        recording = filled(store, key_of())
        (recording.folder / "recording.json").write_bytes(content)
        assert store.find(key_of()) is None
        assert store.recordings() == []
        filled(store, key_of())

    def test_a_recording_that_lacks_a_step_is_made_again(self, store: TemplateStore) -> None:
        recording = filled(store, key_of())
        path = recording.folder / "recording.json"
        content = json.loads(path.read_text())
        del content["checksums"]["2"]
        path.write_text(json.dumps(content))
        assert store.find(key_of()) is None
        assert not recording.folder.exists()

    def test_a_step_without_tensors_under_a_right_checksum_is_made_again(
        self, store: TemplateStore
    ) -> None:
        recording = filled(store, key_of())
        path = recording.folder / "recording.json"
        content = json.loads(path.read_text())
        content["checksums"]["2"] = [4, zlib.crc32(b"none")]
        path.write_text(json.dumps(content))
        recording.file(2).write_bytes(b"none")
        found = store.find(key_of())
        assert found is not None
        with pytest.raises(Damaged, match="has no tensors"):
            store.load(found, 2)
        assert store.find(key_of()) is None

    def test_a_manifest_that_is_nested_deep_is_no_recording(self, store: TemplateStore) -> None:
        recording = filled(store, key_of())
        (recording.folder / "recording.json").write_text("[" * 100_000)
        assert store.recordings() == []

    @pytest.mark.parametrize("number", [errno.EMFILE, errno.EIO, errno.ESTALE, errno.EACCES])
    def test_a_failing_disk_costs_no_recording(
        self, store: TemplateStore, monkeypatch: pytest.MonkeyPatch, number: int
    ) -> None:
        recording = filled(store, key_of())
        store.notes.put(key_of("wanted"))

        def fail(path: Path) -> Any:
            raise OSError(number, os.strerror(number))

        with monkeypatch.context() as failing:
            failing.setattr(files_module, "opened", fail)
            assert store.find(key_of()) is None
            another = TemplateStore(store.root, budget=store.budget)
            assert another.recordings() == []
            assert store.recordings() == [recording], "it has read that one"
            assert store.notes.keys("bundle") == []
            with pytest.raises(Damaged, match="cannot be read"):
                store.load(recording, 0)
        assert another.recordings() == store.recordings() == [recording]
        assert [k.template for k in store.notes.keys("bundle")] == ["wanted"]
        for step in range(4):
            store.load(recording, step)

    def test_a_newer_versions_recording_is_left_alone(self, store: TemplateStore) -> None:
        recording = filled(store, key_of())
        path = recording.folder / "recording.json"
        content = json.loads(path.read_text())
        path.write_text(json.dumps(content | {"key": {**content["key"], "width": 1}}))
        assert store.find(key_of()) is None
        assert store.recordings() == []
        path.write_text(json.dumps(content))
        assert store.recordings() == [recording]

    def test_a_recording_under_a_wrong_name_is_not_taken(self, store: TemplateStore) -> None:
        recording = filled(store, key_of("u"))
        recording.folder.rename(recording.folder.with_name(key_of().digest))
        assert store.find(key_of()) is None

    def test_a_full_disk_leaves_nothing_behind(
        self, store: TemplateStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        kept = filled(store, key_of("kept"))
        count = iter(range(3))

        def full(path: Path, content: bytes, *, lasting: bool) -> None:
            if next(count, None) is None:
                raise OSError(errno.ENOSPC, "No space left on device")
            path.write_bytes(content)

        monkeypatch.setattr(store_module, "write", full)
        with pytest.raises(OSError, match="No space"):
            filled(store, key_of())
        monkeypatch.undo()
        assert store.recordings() == [kept]
        assert not list((store.root / "recordings").glob("[.]*/*"))

    def test_a_killed_recorder_leaves_no_recording(self, store: TemplateStore) -> None:
        def steps() -> Iterator[tuple[int, Tensors]]:
            yield 0, arrays(0)
            os._exit(9)

        child = multiprocessing.get_context("fork").Process(
            target=lambda: store.record(key_of(), Storage("float32"), steps())
        )
        child.start()
        child.join(PATIENCE_S)
        assert child.exitcode == 9
        assert store.find(key_of()) is None
        assert store.recordings() == []
        filled(store, key_of())  # nothing is locked
        (left,) = [p for p in (store.root / "recordings").glob(".*") if p.is_dir()]
        os.utime(left, (1, 1))
        filled(store, key_of("u"))
        assert not left.exists()

    def test_the_least_recently_used_go_when_the_budget_is_full(self, store: TemplateStore) -> None:
        size = filled(store, key_of("a")).bytes
        small = TemplateStore(store.root, budget=2 * size)
        filled(small, key_of("b"))
        for number, name in enumerate("ab"):
            folder = small.root / "recordings" / key_of(name).digest
            os.utime(folder / "recording.json", (number, number))
        small.find(key_of("a"))  # used: b is now the oldest
        filled(small, key_of("c"))
        assert {r.key.template for r in small.recordings()} == {"a", "c"}

    def test_evicting_a_template_takes_its_picture_and_recordings(
        self, store: TemplateStore
    ) -> None:
        identity, _ = store.pictures.put(PICTURE)
        size = filled(store, key_of(identity)).bytes + filled(store, key_of(identity, 2)).bytes
        filled(store, key_of("other"))
        assert store.evict(identity) == size
        assert store.pictures.known() == []
        assert [r.key.template for r in store.recordings()] == ["other"]

    def test_one_of_two_records_while_the_other_waits(self, store: TemplateStore) -> None:
        order: list[str] = []

        def second() -> None:
            with store.locked(key_of()):
                order.append("second")

        with store.locked(key_of()):
            thread = threading.Thread(target=second)
            thread.start()
            with store.locked(key_of("another")):  # another key does not wait
                time.sleep(0.05)
            order.append("first")
        thread.join()
        assert order == ["first", "second"]

    def test_a_lock_leaves_nothing_behind_and_is_held_by_one_at_a_time(
        self, store: TemplateStore
    ) -> None:
        holders, most = list[int](), list[int]()

        def hold() -> None:
            for _ in range(50):
                with store.locked(key_of()):
                    holders.append(1)
                    most.append(len(holders))
                    time.sleep(0.0005)
                    holders.pop()

        threads = [threading.Thread(target=hold) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(most) == 200
        assert max(most) == 1
        assert not list((store.root / "recordings").iterdir())

    def test_a_lock_that_is_held_is_not_waited_for(self, tmp_path: Path) -> None:
        path = tmp_path / ".a.lock"
        with locked(path) as first:
            with locked(path, wait=False) as second:
                assert (first, second) == (True, False)
            assert path.exists()
        with locked(path, wait=False) as third:
            assert third

    def test_what_killed_processes_left_is_swept(self, store: TemplateStore) -> None:
        left = [store.pictures.root / ".tmpabc", store.root / "wanted" / ".a.json.7"]
        locks = [store.root / "recordings" / name for name in (".a.lock", ".b.lock")]
        young = store.pictures.root / ".tmpdef"
        for path in (*left, *locks, young):
            path.touch()
        with locked(locks[1]):
            for path in (*left, *locks):
                os.utime(path, (1, 1))
            store.keep(PICTURE)
            assert locks[1].exists()
        assert not [path for path in (*left, locks[0]) if path.exists()]
        assert young.exists()

    def test_the_longest_unused_pictures_without_recordings_go(
        self, store: TemplateStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(store_module, "UNRECORDED", 2)
        for value in range(3):
            store.keep(np.full((8, 8, 3), value, np.uint8))
        assert len(store.pictures.known()) == 2
        names = [store.keep(np.full((8, 8, 3), value, np.uint8)) for value in (7, 8)]
        for number, name in enumerate(names):
            os.utime(store.pictures.root / f"{name}.npy", (number + 1, number + 1))
        recorded, _ = store.pictures.put(PICTURE)
        filled(store, key_of(recorded))
        os.utime(store.pictures.root / f"{recorded}.npy", (0, 0))
        assert store.pictures.get(names[0]) is not None  # used: the second is now the oldest
        last = store.keep(np.full((8, 8, 3), 9, np.uint8))
        assert set(store.pictures.known()) == {names[0], recorded, last}

"""Templates: what is kept on disk and in memory, in which form, and that damage is never served."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tessera.errors import InvalidInput
from tessera.templates import memory as memory_module
from tessera.templates import store as store_module
from tessera.templates.files import locked
from tessera.templates.memory import DeviceMemory, StepMemory
from tessera.templates.pictures import find_picture
from tessera.templates.storage import CHOICES, Storage, choose_storage, pack, take, unpack
from tessera.templates.store import Damaged, Recording, RecordingKey, TemplateStore
from tessera.types import Tensors

PICTURE = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)


def arrays(step: int, tokens: int = 50) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    return {
        "halo.conv": torch.randn(tokens, 8, generator=generator),
        "key.attn": torch.randn(2, tokens, 4, generator=generator),
        "norm.n": torch.rand(2, 4, generator=generator),
        "norm_rows.n": torch.rand(tokens, 2, 4, generator=generator),
    }


def key_of(template: str = "t", steps: int = 4) -> RecordingKey:
    return RecordingKey("bundle", template, "euler", steps, 0)


EXACT = Storage("float32")


def filled(store: TemplateStore, key: RecordingKey, storage: Storage = EXACT) -> Recording:
    return store.record(key, storage, ((s, arrays(s)) for s in storage.kept(key.steps)))


@pytest.fixture
def store(tmp_path: Path) -> TemplateStore:
    return TemplateStore(tmp_path, budget=10**9)


class TestStorage:
    """The forms of keeping."""

    @pytest.mark.parametrize(("kind", "error"), [("float32", 0), ("float16", 2e-3), ("int8", 0.02)])
    def test_what_comes_back(self, kind: Any, error: float) -> None:
        given = arrays(0)
        packed = pack(given, kind)
        index = torch.tensor([3, 0, 49])
        for name, array in given.items():
            assert float((unpack(packed, name).float() - array).abs().max()) <= error
            rows = take(packed, name, index) if array.shape[0] == 50 else None
            if rows is not None:
                torch.testing.assert_close(rows.float(), unpack(packed, name).float()[index])
        assert packed["norm.n"].dtype == torch.float32
        assert packed["halo.conv"].element_size() == {"float32": 4, "float16": 2, "int8": 1}[kind]

    def test_half_precision_does_not_overflow(self) -> None:
        packed = pack({"halo.x": torch.tensor([[1e9, -1e9]])}, "float16")
        assert packed["halo.x"].isfinite().all()

    def test_a_kept_step_stands_for_those_after_it(self) -> None:
        storage = Storage("int8", 3)
        assert storage.kept(8) == [0, 3, 6]
        assert [storage.source(s) for s in range(8)] == [0, 0, 0, 3, 3, 3, 6, 6]

    def test_the_best_that_fits_is_chosen(self) -> None:
        sizes = [s.bytes(1000, 20) for s in CHOICES]
        assert sizes == sorted(sizes, reverse=True)
        for storage, size in zip(CHOICES, sizes, strict=True):
            assert choose_storage(1000, 20, size).bytes(1000, 20) == size  # type: ignore[union-attr]
            assert storage.bytes(1000, 20) == size
        assert choose_storage(1000, 20, 10**9) == Storage("float16")
        assert choose_storage(1000, 20, sizes[-1] - 1) is None


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

    @pytest.mark.parametrize("number", [errno.EMFILE, errno.EIO, errno.ESTALE, errno.EACCES])
    def test_a_failing_disk_costs_no_recording(
        self, store: TemplateStore, monkeypatch: pytest.MonkeyPatch, number: int
    ) -> None:
        recording = filled(store, key_of())
        store.want(key_of("wanted"))

        def fail(path: Path, *args: object, **options: object) -> Any:
            raise OSError(number, os.strerror(number))

        with monkeypatch.context() as failing:
            failing.setattr(Path, "read_text", fail)
            failing.setattr(Path, "read_bytes", fail)
            assert store.find(key_of()) is None
            assert store.recordings() == []
            assert store.wanted("bundle") == []
            with pytest.raises(Damaged, match="cannot be read"):
                store.load(recording, 0)
        assert store.recordings() == [recording]
        assert [k.template for k in store.wanted("bundle")] == ["wanted"]
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

        def full(path: Path, content: bytes) -> None:
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
        child.join(30)
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
        identity = store.pictures.put(PICTURE)
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
        recorded = store.pictures.put(PICTURE)
        filled(store, key_of(recorded))
        os.utime(store.pictures.root / f"{recorded}.npy", (0, 0))
        assert store.pictures.get(names[0]) is not None  # used: the second is now the oldest
        last = store.keep(np.full((8, 8, 3), 9, np.uint8))
        assert set(store.pictures.known()) == {names[0], recorded, last}

    def test_what_is_wanted_is_not_remembered_for_ever(
        self, store: TemplateStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(store_module, "WANTED", 2)
        for number, name in enumerate("abc"):
            store.want(key_of(name))
            for path in (store.root / "wanted").glob("*.json"):
                stamp = path.stat().st_mtime - 10  # older than what comes next
                os.utime(path, (stamp, stamp))
            assert len(list((store.root / "wanted").iterdir())) == min(number + 1, 2)
        assert [k.template for k in store.wanted("bundle")] == ["c", "b"]
        monkeypatch.setattr(store_module, "WANTED_S", 15.0)
        assert [k.template for k in store.wanted("bundle")] == ["c"]

    def test_what_is_wanted_is_remembered_until_it_is_done(self, store: TemplateStore) -> None:
        store.want(key_of("a"))
        store.want(key_of("b"))
        store.want(key_of("b"))
        store.want(RecordingKey("another bundle", "c", "euler", 4, 0))
        assert {k.template for k in store.wanted("bundle")} == {"a", "b"}
        store.done(key_of("a"))
        assert [k.template for k in store.wanted("bundle")] == ["b"]


class TestPictures:
    """Pictures on disk."""

    def test_a_picture_is_found_by_its_id(self, store: TemplateStore) -> None:
        identity = store.pictures.put(PICTURE)
        assert store.pictures.put(PICTURE) == identity
        found = store.pictures.get(identity)
        assert found is not None
        assert (found == PICTURE).all()
        assert store.pictures.size_of(identity) == (64, 96)

    def test_a_damaged_picture_is_not_served(self, store: TemplateStore) -> None:
        identity = store.pictures.put(PICTURE)
        path = store.pictures.root / f"{identity}.npy"
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
        assert store.pictures.get(identity) is None
        assert not path.exists()

    @pytest.mark.parametrize("identity", ["abc", "../../etc/passwd", "", "a/b"])
    def test_an_unknown_template_lists_the_known_ones(
        self, store: TemplateStore, identity: str
    ) -> None:
        with pytest.raises(InvalidInput, match=r"accepted: a known template \(none is known\)"):
            find_picture(store.pictures, identity)
        known = store.pictures.put(PICTURE)
        with pytest.raises(InvalidInput, match=f"accepted: a known template, one of {known}"):
            find_picture(store.pictures, identity)


def wait_until(condition: Callable[[], bool]) -> None:
    """Entries are counted by the threads that read them, a little after a read's end is seen."""
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.001)


class TestMemory:
    """Recorded steps in memory."""

    def test_an_entry_is_read_once(self) -> None:
        memory, reads = StepMemory(budget=10**9), list[int]()

        def read() -> Tensors:
            reads.append(1)
            return arrays(0)

        memory.ahead(("d", 0), read)
        for _ in range(3):
            assert torch.equal(memory.get(("d", 0), read).result()["norm.n"], arrays(0)["norm.n"])
        assert len(reads) == 1
        assert (memory.counters.hits, memory.counters.misses) == (3, 0)
        memory.get(("d", 1), read).result()
        assert memory.counters.misses == 1
        assert memory.counters.hit_rate == 0.75

    def test_a_stalled_read_is_soon_forgotten(self, monkeypatch: pytest.MonkeyPatch) -> None:
        memory = StepMemory(budget=10**9)
        assert memory.read_ms == 0

        def stalled() -> Tensors:
            time.sleep(0.5)
            return arrays(0)

        memory.get(("slow", 0), stalled).result()
        assert memory.read_ms > 400
        for step in range(4):
            memory.get(("d", step), lambda: arrays(0)).result()
        assert 0 < memory.read_ms < 100
        monkeypatch.setattr(memory_module, "_RECENT_S", 0.0)
        assert memory.read_ms == 0

    def test_the_least_recently_used_leave(self) -> None:
        size = sum(a.nbytes for a in arrays(0).values())
        memory = StepMemory(budget=2 * size, threads=1)
        for step in (0, 1, 0, 2):
            memory.get(("d", step), lambda s=step: arrays(s)).result()  # type: ignore[misc]
        wait_until(lambda: memory.counters.evictions == 1)
        memory.get(("d", 0), lambda: pytest.fail("0 was used last")).result()
        before = memory.counters.misses
        memory.get(("d", 1), lambda: arrays(1)).result()
        assert memory.counters.misses == before + 1
        wait_until(lambda: memory.counters.evictions == 2)
        assert memory.counters.bytes <= 2 * size

    def test_what_leaves_the_device_stays_in_host_memory(self) -> None:
        size = sum(a.nbytes for a in arrays(0).values())
        host = StepMemory(budget=10 * size)
        device = DeviceMemory(host, device="cpu", budget=size)
        for step in (0, 1):
            device.get(("d", step), lambda s=step: arrays(s)).result()  # type: ignore[misc]
            wait_until(lambda: device.counters.bytes == size)
        wait_until(lambda: device.tiers["device"].evictions == 1)
        assert device.holds(("d", 0))
        again = device.get(("d", 0), lambda: pytest.fail("it is in host memory")).result()
        assert torch.equal(again["norm.n"], arrays(0)["norm.n"])
        device.drop("d")
        assert [tier.entries for tier in device.tiers.values()] == [0, 0]

    def test_a_failed_read_is_told_and_forgotten(self) -> None:
        memory = StepMemory(budget=10**9)

        def fail() -> Tensors:
            raise Damaged("d", "no")

        with pytest.raises(Damaged):
            memory.get(("d", 0), fail).result()
        wait_until(lambda: memory.counters.entries == 0)
        assert memory.get(("d", 0), lambda: arrays(0)).result()
        wait_until(lambda: memory.holds(("d", 0)))
        memory.drop("d")
        assert (memory.counters.bytes, memory.counters.entries) == (0, 0)

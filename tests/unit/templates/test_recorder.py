"""The recorder: one recording for a key, made once."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from tessera.errors import Unavailable
from tessera.templates.recorder import Recorder
from tessera.templates.store import Recording, TemplateStore
from tests.samples.edits import World
from tests.samples.requests import MANIFEST
from tests.samples.schedulers import DEMO


def test_a_recording_is_made_once_and_again_when_it_is_damaged(world: World) -> None:
    recording, made = world.recorder.ensure(world.key())
    assert made
    assert world.recorder.ensure(world.key()) == (recording, False)
    recording.file(0).write_bytes(b"")
    with pytest.raises(Exception, match="is not what was written"):
        world.store.load(recording, 0)
    assert world.recorder.ensure(world.key())[1]
    assert world.opened == 1


def test_two_at_once_record_once(world: World) -> None:
    other = Recorder(world.store, MANIFEST, DEMO, world.open, budget=10**9)
    key, found = world.key(), list[tuple[Recording, bool]]()
    threads = [
        threading.Thread(target=lambda r=r: found.append(r.ensure(key)))
        for r in (world.recorder, other)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(made for _, made in found) == [False, True]


def test_a_recording_for_nobody_is_left_to_whoever_makes_it(world: World) -> None:
    other = TemplateStore(world.store.root, budget=10**9)
    calls: list[int] = []
    with other.locked(world.key()):
        assert not world.recorder.attempt(world.key(), between=lambda: calls.append(1))
    assert world.store.find(world.key()) is None
    assert world.recorder.attempt(world.key(), between=lambda: calls.append(1))
    assert world.store.find(world.key()) is not None
    assert len(calls) == 2  # for 5 steps


def test_what_cannot_be_recorded_is_said(tmp_path: Path) -> None:
    poor = World(tmp_path, budget=1000)
    with pytest.raises(Unavailable, match=r"does not fit the 1e-06 GB .* see --template-size"):
        poor.recorder.ensure(poor.key())
    gone = poor.key()
    poor.store.evict(gone.template)
    with pytest.raises(Unavailable, match="was evicted; send its image again"):
        poor.recorder.ensure(gone)

"""The load that `jobs` tells, and that a router of the fleet reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from tessera.load.reader import _by_schedule, _recorded
from tessera.manifest import write_manifest
from tessera.shared.settings import ServerSettings
from tessera.templates.storage import Storage
from tessera.templates.store import Recording, RecordingKey
from tessera_gateway.fleet.load import Load, Running, Waiting, read_load
from tests.fakes import triton_python_backend_utils as pb_utils
from tests.fakes.calls import edit_inputs, encoded, run_to_end, sequence
from tests.samples.requests import MANIFEST, inputs


@pytest.fixture
def told(models: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    """Models of a bundle whose manifest can be read."""
    (tmp_path / "bundle").mkdir()
    write_manifest(tmp_path / "bundle", MANIFEST)
    return models


def ask(models: dict[str, Any]) -> bytes:
    response = models["jobs"].execute([pb_utils.Request(**inputs(ACTION="load"))])[0]
    assert response.error is None, response.error
    return bytes(response.arrays()["RESULT"][0, 0])


def test_an_idle_server(told: dict[str, Any]) -> None:
    load = read_load(ask(told))
    assert load.worker == ServerSettings.from_environment().worker
    assert (load.running, load.waiting, load.recordings, load.controls) == ((), (), (), ())
    defaults, expected = load.defaults, MANIFEST.defaults
    assert (defaults.steps, defaults.guidance) == (expected.steps, expected.guidance)
    assert (defaults.width, defaults.height) == (expected.width, expected.height)
    assert (defaults.scheduler, defaults.pixels) == (expected.scheduler, MANIFEST.latents.pixels)


def test_requests_that_run_and_wait(told: dict[str, Any]) -> None:
    first = sequence(told, 1, STEPS=9, JOB_ID="a", WIDTH=64, HEIGHT=96)
    second = sequence(told, 2, STEPS=4, JOB_ID="b", GUIDANCE=1.0)
    told["denoise"].execute([first, second])
    encoded(told, STEPS=5, JOB_ID="c")
    load = read_load(ask(told))
    a, b = load.running
    pixels = MANIFEST.latents.pixels
    assert a == Running("a", left=8, branches=2, height=96 // pixels, width=64 // pixels)
    assert (b.job, b.left, b.branches) == ("b", 3, 1)
    assert load.waiting == (Waiting("c", 5),)
    assert load.slots == 4


def test_nothing_is_left_of_a_request_that_has_ended(told: dict[str, Any]) -> None:
    run_to_end(told, {**encoded(told, STEPS=2, JOB_ID="a"), "QUEUED_TICK": np.array([[0]])})
    assert read_load(ask(told)).running == ()


def test_no_room_for_the_load_fails_no_request(
    told: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, content: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("tessera.shared.load.write", full)
        request = sequence(told, 1, STEPS=9, JOB_ID="a")
        assert told["denoise"].execute([request]) == [None]
    assert read_load(ask(told)).running == ()
    told["denoise"].execute([request, sequence(told, 2, STEPS=9, JOB_ID="b")])
    assert [running.job for running in read_load(ask(told)).running] == ["a", "b"]


def test_progress_is_told_while_the_same_requests_run(
    told: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    request = sequence(told, 1, STEPS=9, JOB_ID="a")
    left = []
    for wait in (60.0, 60.0, 0.0):
        monkeypatch.setattr("tessera.load.teller.EVERY_S", wait)
        told["denoise"].execute([request])
        left.append(read_load(ask(told)).running[0].left)
    assert left == [8, 8, 6]


def test_an_edit_without_recording(told: dict[str, Any]) -> None:
    edit = told["encode"].execute([pb_utils.Request(**edit_inputs(STEPS=9, JOB_ID="e"))])[0]
    arrays = edit.arrays()
    del arrays["PIXELS"]
    told["denoise"].execute([pb_utils.Request(1, True, **arrays, QUEUED_TICK=np.array([[0]]))])
    (running,) = read_load(ask(told)).running
    assert (running.job, running.left, running.sparse, running.active) == ("e", 8, 0, 0)


def test_without_a_step_chooser_a_step_costs_what_the_latest_did(told: dict[str, Any]) -> None:
    requests = [sequence(told, i, STEPS=9, JOB_ID=str(i)) for i in range(2)]
    for _ in range(3):
        told["denoise"].execute(requests)
    load = read_load(ask(told))
    constant, slope = load.lines.dense
    assert constant == pytest.approx(told["board"].step_ms / 4, abs=0.001)
    assert constant > 0
    assert slope == 0


def test_recordings_on_disk(told: dict[str, Any], sparse_models: dict[str, Any]) -> None:
    image = edit_inputs()["IMAGE"]
    register = pb_utils.Request(**inputs(ACTION="register", STEPS=7), IMAGE=image)
    answer = json.loads(told["templates"].execute([register])[0].arrays()["RESULT"][0, 0])
    told["jobs"].__dict__["_manifest"] = sparse_models["templates"]._manifest
    load = read_load(ask(told))
    (recorded,) = load.recordings
    assert load.templates == {answer["template"]}
    assert (recorded.template, recorded.steps) == (answer["template"], 7)
    assert recorded.kept > 0
    assert (recorded.host, recorded.device) == (0, 0)


def test_a_router_sees_one_recording_of_a_schedule() -> None:
    """With whatever prompts: that with the empty one if there is one."""
    storage, key = Storage("float32"), RecordingKey("b", "t", "euler", 9, 0)
    first, second = (Recording(Path(), key.with_text(t * 16), storage, {}) for t in "12")
    empty = Recording(Path(), key, storage, {})
    assert list(_by_schedule([first, second]).values()) == [first]
    assert list(_by_schedule([first, empty, second]).values()) == [empty]


def test_a_router_knows_every_field(told: dict[str, Any]) -> None:
    told["denoise"].execute([sequence(told, 1, STEPS=9, JOB_ID="a")])
    encoded(told, STEPS=5, JOB_ID="c")
    answer = json.loads(ask(told))
    answer["recordings"] = [vars_of_a_recording()]
    known = json.loads(msgspec.json.encode(msgspec.json.decode(json.dumps(answer), type=Load)))
    assert known == answer  # `templates` is a set there, and empty here


def vars_of_a_recording() -> dict[str, Any]:
    key = RecordingKey("b", "t", "euler", 9, 0)
    storage = Storage.__new__(Storage)
    recording = Recording(Path(), key, storage, {0: (1, 1), 1: (1, 1)})
    return _recorded(recording, {"memory": {key.digest: 1}, "device": {}}, prompted=True)

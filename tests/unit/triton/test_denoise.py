"""`denoise`: the running batch, and requests that leave it in every way."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tessera.denoise import opening
from tessera.denoise.ending import final_stats
from tessera.shared import ends, rows
from tessera.shared.rows import Phase
from tests.fakes import triton_python_backend_utils as pb_utils
from tests.fakes.bundle import FakeBundle
from tests.fakes.calls import edit_inputs, load, message, phase, plan_in, sequence
from tests.samples.requests import inputs


def test_edits_and_generations_share_a_tick(models: dict[str, Any]) -> None:
    edit = models["encode"].execute([pb_utils.Request(**edit_inputs(STEPS=9))])[0].arrays()
    del edit["PIXELS"]
    requests = [
        pb_utils.Request(1, True, **edit, QUEUED_TICK=np.array([[0]])),
        sequence(models, 2, STEPS=9, WIDTH=64, HEIGHT=96),
    ]
    assert {frozenset(t.name() for t in r.inputs()) for r in requests} == {
        frozenset(("PLAN", "TEXT", "POOLED", "CLEAN", "ACTIVE", "MASKED", "CONTROL", "QUEUED_TICK"))
    }
    assert models["denoise"].execute(requests) == [None, None]
    assert models["bundle"].by_graph["unet_encoder"].batches == [4]


def test_requests_in_one_tick_share_the_network_call(models: dict[str, Any]) -> None:
    requests = [sequence(models, i, STEPS=3, SEED=i) for i in range(3)]
    assert models["denoise"].execute(requests) == [None, None, None]
    assert models["bundle"].by_graph["unet_encoder"].batches == [6]
    assert {r.flags for r in requests} == {pb_utils.TRITONSERVER_REQUEST_RELEASE_RESCHEDULE}


def test_a_partial_batch_is_sent_back_to_regroup(models: dict[str, Any]) -> None:
    denoise = models["denoise"]
    requests = [sequence(models, i, STEPS=5) for i in range(3)]
    denoise.execute(requests)
    assert denoise.execute(requests[:1]) == [None]
    assert models["board"].tick == 1  # nothing was computed
    newcomer = sequence(models, 7, STEPS=5)
    assert denoise.execute([*requests, newcomer]) == [None] * 4
    assert models["board"].tick == 2
    assert models["bundle"].by_graph["unet_encoder"].batches == [6, 8]


def test_regrouping_gives_up_on_a_request_that_stays_away(models: dict[str, Any]) -> None:
    denoise = models["denoise"]
    requests = [sequence(models, i, STEPS=9) for i in range(2)]
    denoise.execute(requests)
    for _ in range(3):
        denoise.execute(requests[:1])
        assert models["board"].tick == 1
    denoise.execute(requests[:1])
    assert models["board"].tick == 2
    denoise.execute(requests[:1])  # it is not waited for again
    assert models["board"].tick == 3


def test_cancelled_jobs_leave_at_the_next_tick(models: dict[str, Any]) -> None:
    denoise = models["denoise"]
    stays, goes = (sequence(models, i, STEPS=9, JOB_ID=f"j{i}") for i in range(2))
    denoise.execute([stays, goes])
    result = (
        models["jobs"]
        .execute([pb_utils.Request(**inputs(ACTION="cancel", JOB_ID="j1"))])[0]
        .arrays()
    )
    assert json.loads(result["RESULT"][0, 0])["cancelled"]
    still, gone = denoise.execute([stays, goes])
    assert still is None
    sentence, code = message(gone)
    assert sentence == "[CANCELLED] job j1 was cancelled after 1 steps"
    assert code == pb_utils.TritonError.CANCELLED
    assert denoise.execute([stays]) == [None]
    assert models["bundle"].by_graph["unet_encoder"].batches == [4, 2, 2]


def test_denoise_serves_only_what_is_on_the_board(models: dict[str, Any]) -> None:
    request = sequence(models, 1, JOB_ID="j")
    job = plan_in({"PLAN": request.inputs()[0].as_numpy()})
    models["board"].close(job.slot, job.ticket, Phase.DONE)
    sentence, code = message(models["denoise"].execute([request])[0])
    assert "not on the board" in sentence
    assert code == pb_utils.TritonError.UNAVAILABLE


def test_what_fails_for_a_tick_as_a_whole_is_told_to_its_requests(models: dict[str, Any]) -> None:
    denoise = models["denoise"]
    requests = [sequence(models, i, STEPS=50, JOB_ID=f"j{i}") for i in range(2)]
    works, denoise._adapters.tick = denoise._adapters.tick, lambda *a, **b: 1 / 0
    for response in denoise.execute(requests):
        assert "internal error" in message(response)[0]
    assert (phase(models, "j0"), phase(models, "j1")) == ("failed", "failed")  # without render
    denoise._adapters.tick = works
    assert denoise.execute([sequence(models, 2, STEPS=50, JOB_ID="j2")]) == [None]


def test_a_tick_may_take_longer_than_what_makes_a_request_vanish(
    models: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(load("denoise"), "time", SimpleNamespace(monotonic=lambda: now[0]))
    denoise = models["denoise"]
    request = sequence(models, 1, STEPS=2, JOB_ID="j")
    works = denoise._adapters.tick

    def slowly(*arguments: Any, **options: Any) -> None:
        now[0] += load("denoise").VANISHED_S + 1
        works(*arguments, **options)

    denoise._adapters.tick = slowly
    assert denoise.execute([request]) == [None]
    assert denoise.execute([request])[0].error is None


def test_state_of_vanished_requests_is_collected(
    models: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    denoise = models["denoise"]
    lost, kept = (sequence(models, i, STEPS=50, JOB_ID=f"j{i}") for i in range(2))
    denoise.execute([lost, kept])
    monkeypatch.setattr(load("denoise"), "MAX_REGROUPS", 0)
    denoise._seen[0] -= load("denoise").VANISHED_S + 1
    denoise.execute([kept])
    assert list(denoise._running) == [1]
    assert (phase(models, "j0"), phase(models, "j1")) == ("failed", "denoising")


def test_a_device_that_fails_ends_its_requests_and_nobody_elses(
    models: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = FakeBundle(devices=2)
    denoise = models["denoise"]
    opened = opening.open_unet  # without its measurements, for which a fake has no files
    monkeypatch.setattr(opening, "_measure", lambda *arguments: None)
    monkeypatch.setattr(denoise, "_unet", opened(bundle).unet)  # type: ignore[arg-type]
    requests = [sequence(models, i, STEPS=9, SEED=i, JOB_ID=f"j{i}") for i in range(3)]
    assert denoise.execute(requests) == [None] * 3

    def fail(inputs: Any) -> Any:
        raise RuntimeError("an illegal memory access was encountered")

    bundle.replicas["unet_encoder"][1]._run = fail
    bundle.devices[1].probe = lambda: fail(None)
    first, *lost = denoise.execute(requests)  # rows 0 to 2 are on the first device
    assert first is None
    for response in lost:
        sentence, code = message(response)
        assert sentence.startswith("[UNAVAILABLE] gpu:1 failed while it computed this request")
        assert code == pb_utils.TritonError.UNAVAILABLE
    assert [phase(models, f"j{i}") for i in range(3)] == ["denoising", "failed", "failed"]
    assert denoise.execute([requests[0], sequence(models, 7, STEPS=9)]) == [None, None]


def test_the_slots_are_for_those_of_the_highest_priority(models: dict[str, Any]) -> None:
    """Between ticks, too: who runs already makes room."""
    denoise = models["denoise"]
    last = [sequence(models, i, STEPS=50, JOB_ID=f"j{i}", priority=3) for i in range(5)]
    assert denoise.execute(last) == [None] * 5
    assert [models["board"].status(f"j{i}").step for i in range(5)] == [1, 1, 1, 1, 0]
    assert phase(models, "j4") == "queued"
    assert denoise._running[4].started is None, "its time in the queue goes on"
    first = sequence(models, 7, STEPS=50, JOB_ID="first", priority=1)
    assert denoise.execute([*last, first]) == [None] * 6
    assert [models["board"].status(f"j{i}").step for i in range(5)] == [2, 2, 2, 1, 0]
    assert models["board"].status("first").step == 1
    row = models["board"]._rows[denoise._running[3].plan.slot]
    row["touched"] = before = row["touched"] - 60.0
    assert denoise.execute([*last, first]) == [None] * 6
    assert row["touched"] > before + 59, "a pause is no step"


def test_the_time_without_a_slot_is_one_in_the_queue(models: dict[str, Any]) -> None:
    denoise = models["denoise"]
    last = [sequence(models, i, STEPS=50, priority=3) for i in range(4)]
    assert denoise.execute(last) == [None] * 4
    first = sequence(models, 7, STEPS=3, priority=1)
    denoise.execute([*last, first])
    paused = denoise._running[3]
    assert paused.paused is not None
    paused.paused -= 60.0
    paused.started -= 61.0
    denoise.execute([*last, first])
    denoise.execute([*last, first])
    assert denoise.execute(last) == [None] * 4
    assert paused.paused is None
    stats = final_stats(paused)
    assert 1_000 <= stats.denoise_ms < 30_000
    assert paused.paused_s >= 60


def test_who_waits_for_a_file_leaves_its_slot_to_others(
    models: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    denoise = models["denoise"]
    requests = [sequence(models, i, STEPS=50) for i in range(5)]
    seen: list[int] = []

    def ready(able: Any) -> Any:
        seen.append(len(able))
        return able[1:]

    monkeypatch.setattr(denoise._adapters, "ready", ready)
    denoise.execute(requests[:4])
    assert seen == [], "all have slots"
    denoise.execute(requests)
    assert seen == [5]
    steps = [denoise._running[i].step for i in range(5)]
    assert steps == [1, 2, 2, 2, 1]


def test_a_tick_knows_whether_others_wait(
    models: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then the paths of LoRAs are compared by when the last request ends."""
    denoise, told = models["denoise"], []
    tick = denoise._adapters.tick

    def telling(*arguments: Any, crowded: bool, **options: Any) -> None:
        told.append(crowded)
        tick(*arguments, crowded=crowded, **options)

    monkeypatch.setattr(denoise._adapters, "tick", telling)
    requests = [sequence(models, i, STEPS=50) for i in range(5)]
    denoise.execute(requests[:4])
    denoise.execute(requests)
    assert told == [False, True]


def test_who_waits_for_a_slot_for_long_is_not_lost(
    models: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    denoise, board = models["denoise"], models["board"]
    monkeypatch.setattr(ends, "SWEEP_S", -1.0)
    requests = [sequence(models, i, STEPS=50, JOB_ID=f"j{i}") for i in range(5)]
    for request in requests:
        board.take(plan_in({"PLAN": request.inputs()[0].as_numpy()}))
    assert denoise.execute(requests) == [None] * 5
    assert phase(models, "j4") == "queued"
    board._rows["touched"] -= rows.ABANDONED_S + 1
    board._rows["seen"] -= rows.ABANDONED_S + 1
    denoise.execute(requests)
    assert board.running() == 5
    board._rows["seen"] -= rows.ABANDONED_S + 1
    assert board.running() == 4, "it has not moved"


@pytest.mark.parametrize("priority", [0, 4, -1, 1.5, True, "first"])
def test_priorities_that_are_none(models: dict[str, Any], priority: object) -> None:
    request = pb_utils.Request(parameters={"job_priority": priority}, **inputs())
    sentence, code = message(models["encode"].execute([request])[0])
    assert sentence == f"job_priority is {priority!r}; accepted: an integer from 1 to 3"
    assert code == pb_utils.TritonError.INVALID_ARG

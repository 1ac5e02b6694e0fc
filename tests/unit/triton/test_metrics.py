"""What the models tell Prometheus."""

from __future__ import annotations

import dataclasses
import threading
from typing import Any

import numpy as np
import pytest

from tessera.shared.metrics import PREFIX, TABLE
from tessera.shared.settings import ServerSettings
from tessera.shared.signing import FIRST, ServerKey
from tests.fakes import triton_python_backend_utils as pb_utils
from tests.fakes.calls import edit_inputs, encoded, message, sequence, summed
from tests.samples.requests import inputs
from tests.samples.waiting import PATIENCE_S

Ends = dict[tuple[str, ...], int]


def ends(models: dict[str, Any]) -> Ends:
    """Requests that have ended, by kind and outcome, without those of which there are none."""
    models["jobs"]._metrics.publish()
    counted = pb_utils.METRICS.get("tessera_requests_total", {})
    return {labels: int(series.value) for labels, series in counted.items() if series.value}


def observed(name: str, *labels: str) -> list[float]:
    series = pb_utils.METRICS.get(f"{PREFIX}{name}", {}).get(labels)
    return series.observed if series else []


def test_every_request_is_counted_once_by_its_outcome(models: dict[str, Any]) -> None:
    for _ in range(2):
        assert models["edit"].execute([pb_utils.Request(**edit_inputs())])[0].error is None
    models["render"].execute([pb_utils.Request(**encoded(models, JOB_ID="gone"))])  # never decoded
    arrays = encoded(models, JOB_ID="cancelled", STEPS=7)
    models["board"].cancel("cancelled")
    models["render"].execute([pb_utils.Request(**arrays)])
    spoiled = encoded(models, JOB_ID="spoiled")
    spoiled["TEXT"] = spoiled["TEXT"] * np.nan
    spoiled = summed(spoiled)
    models["render"].execute([pb_utils.Request(**spoiled)])
    assert ends(models) == {
        ("edit", "done"): 2,
        ("generate", "cancelled"): 1,
        ("generate", "refused"): 1,
    }
    assert pb_utils.METRICS["tessera_cancelled_steps_saved_total"][()].value == 7
    assert ends(models)[("edit", "done")] == 2, "published twice"


@pytest.mark.parametrize("prompt", ["", "x" * 3000])
def test_a_request_that_is_refused_at_once_is_no_fault(models: dict[str, Any], prompt: str) -> None:
    for name in ("encode", "edit"):
        response = models[name].execute([pb_utils.Request(**inputs(PROMPT=prompt))])[0]
        assert response.error is not None
    assert ends(models) == {("generate", "refused"): 1, ("edit", "refused"): 1}


def test_a_fault_is_counted_as_one(models: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(arrays: dict[str, Any]) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr(models["decode"], "_picture", broken)
    assert models["edit"].execute([pb_utils.Request(**edit_inputs())])[0].error is not None
    assert ends(models) == {("edit", "failed"): 1}


FIRST_ID = "tessera-warm-up-3"


def test_the_first_pictures_of_a_server_are_not_counted(models: dict[str, Any]) -> None:
    word = ServerKey(ServerSettings.from_environment().key).first

    def answer(model: str, given: dict[str, Any]) -> dict[str, Any]:
        request = pb_utils.Request(parameters={FIRST: word}, **given)
        return dict(models[model].execute([request])[0].arrays())

    encoded = answer("encode", inputs(JOB_ID=FIRST_ID))
    rendered = answer("render", encoded)
    assert answer("decode", {"PLAN": encoded["PLAN"], **rendered})["IMAGE"].shape
    assert not ends(models)
    assert not any(s.observed for series in pb_utils.METRICS.values() for s in series.values())


def test_first_pictures_that_there_is_no_room_for_are_not_counted(
    models: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are sent again and again."""
    monkeypatch.setattr(models["encode"], "_max_queue", 0)
    word = ServerKey(ServerSettings.from_environment().key).first
    waiting = [inputs(JOB_ID=name) for name in "abcd"]
    first = pb_utils.Request(parameters={FIRST: word}, **inputs(JOB_ID=FIRST_ID))
    for request in (*(pb_utils.Request(**each) for each in waiting), first):
        answer = models["encode"].execute([request])[0]
    assert "the queue is full" in message(answer)[0]
    assert not ends(models)
    models["encode"].execute([pb_utils.Request(**inputs(JOB_ID="e"))])
    assert ends(models) == {("generate", "unavailable"): 1}


@pytest.mark.parametrize("model", ["encode", "edit"])
@pytest.mark.parametrize("word", [{}, {FIRST: "guessed"}, {FIRST: 1}, {FIRST: "\ud800"}])
def test_nobody_else_may_have_the_ids_of_first_pictures(
    models: dict[str, Any], model: str, word: dict[str, Any]
) -> None:
    given = edit_inputs(JOB_ID=FIRST_ID)
    said, _ = message(models[model].execute([pb_utils.Request(parameters=word, **given)])[0])
    accepted = "an id that does not begin with tessera-warm-up-"
    assert said == f"JOB_ID is {FIRST_ID!r}; accepted: {accepted}"
    assert ends(models) == {("edit", "refused"): 1}


def test_a_call_that_others_share_with_a_first_picture_is_measured(models: dict[str, Any]) -> None:
    first, other = (sequence(models, i, STEPS=9, JOB_ID=f"j{i}") for i in range(2))
    models["denoise"].execute([first])
    running = models["denoise"]._running[0]
    running.plan = dataclasses.replace(running.plan, job_id=FIRST_ID)
    before = len(observed("step_seconds", "dense"))
    models["denoise"].execute([first])
    assert len(observed("step_seconds", "dense")) == before
    models["denoise"].execute([first, other])
    assert len(observed("step_seconds", "dense")) == before + 1


def test_metrics_go_on_behind_a_fault(
    models: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from tessera.triton import metrics

    monkeypatch.setattr(metrics, "EVERY_S", 0.001)
    faults, published = iter([OSError("torn")] * 2), threading.Event()
    before = len(pb_utils.Logger.lines)
    publisher = metrics.BoardMetrics(ServerSettings.from_environment(), models["board"])

    def publish() -> None:
        if error := next(faults, None):
            raise error
        published.set()

    monkeypatch.setattr(publisher, "publish", publish)
    publisher.start()
    assert published.wait(PATIENCE_S)
    publisher.stop()
    said = [line for line in pb_utils.Logger.lines[before:] if "could not be published" in line]
    assert said == ["tessera: metrics could not be published: OSError('torn')"]


def test_a_picture_is_measured_in_its_stages_and_steps(models: dict[str, Any]) -> None:
    given = edit_inputs(STEPS=5)
    assert models["edit"].execute([pb_utils.Request(**given)])[0].error is None
    (latency,) = observed("request_latency_seconds", "edit")
    stages = [observed("stage_seconds", stage)[0] for stage in ("encode", "denoise", "decode")]
    assert 0 < sum(stages) <= latency
    assert len(observed("queue_time_seconds")) == 1
    assert observed("mask_ratio") == [pytest.approx(32 * 24 / (96 * 64))]
    assert len(observed("step_seconds", "dense")) == 5
    assert pb_utils.METRICS["tessera_batch_rows_total"][()].value == 2 * 5


def test_every_series_is_there_before_its_first_event(models: dict[str, Any]) -> None:
    models["jobs"]._metrics._metrics.make_all()
    made = {name: set(series) for name, series in pb_utils.METRICS.items()}
    assert made == {
        f"{PREFIX}{name}": {tuple(labels.values()) for labels in metric.series()}
        for name, metric in TABLE.items()
    }


def test_a_server_without_metrics_serves(
    models: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: Any, **options: Any) -> None:
        raise RuntimeError("metrics are not allowed")

    monkeypatch.setattr(pb_utils, "MetricFamily", refuse)
    assert models["edit"].execute([pb_utils.Request(**edit_inputs())])[0].error is None
    assert any("no metrics of this process" in line for line in pb_utils.Logger.lines)

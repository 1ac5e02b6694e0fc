"""`templates`: registering, listing, evicting, and what it records when nobody waits."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tessera.templates.store import RecordingKey, TemplateStore
from tests.fakes import triton_python_backend_utils as pb_utils
from tests.fakes.calls import edit_inputs, load, message
from tests.samples.requests import inputs


def test_a_recording_whose_edit_was_cancelled_is_not_begun(sparse_models: dict[str, Any]) -> None:
    template = sparse_models["templates"]._store.keep(edit_inputs()["IMAGE"][0])
    given = inputs(ACTION="register", TEMPLATE=template)
    del given["PROMPT"]
    for job in ("goes on", "cancelled"):
        sparse_models["board"].open(job, 1)
    sparse_models["board"].cancel("cancelled")
    responses = [
        sparse_models["templates"].execute([pb_utils.Request(parameters={"job_id": j}, **given)])[0]
        for j in ("cancelled", "goes on")
    ]
    code = pb_utils.TritonError.CANCELLED
    assert message(responses[0]) == ("job cancelled was cancelled", code)
    assert responses[1].error is None
    assert len(sparse_models["recorder"].keys) == 1


class TestIdle:
    """What the `templates` model records when nobody waits."""

    def want(self, models: dict[str, Any]) -> RecordingKey:
        """The key that an automatic edit has found missing."""
        models["edit"].execute([pb_utils.Request(**edit_inputs(STEPS=4))])
        (key,) = models["templates"]._store.wanted(models["digest"])
        return key

    def test_is_left_to_the_other_process_that_records_it(
        self, sparse_models: dict[str, Any]
    ) -> None:
        templates, key = sparse_models["templates"], self.want(sparse_models)
        other = TemplateStore(templates._store.root, budget=10**9)
        with other.locked(key), ThreadPoolExecutor(1) as pool:
            pool.submit(templates._record_wanted).result(30)
            given = edit_inputs(ACTION="register", STEPS=7)
            register = {k: given[k] for k in ("ACTION", "STEPS", "IMAGE")}
            request = pb_utils.Request(**register)
            (response,) = pool.submit(templates.execute, [request]).result(30)
            assert response.error is None
        assert [k.steps for k in sparse_models["recorder"].keys] == [7]
        assert other.wanted(sparse_models["digest"]) == [key]
        templates._record_wanted()
        assert [k.steps for k in sparse_models["recorder"].keys] == [7, 4]
        assert not other.wanted(sparse_models["digest"])

    def test_does_not_queue_behind_a_registration(self, sparse_models: dict[str, Any]) -> None:
        templates, key = sparse_models["templates"], self.want(sparse_models)
        with templates._busy, ThreadPoolExecutor(1) as pool:
            pool.submit(templates._record_wanted).result(30)
        assert templates._store.wanted(sparse_models["digest"]) == [key]

    def test_goes_on_after_an_error(
        self, sparse_models: dict[str, Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        templates, key = sparse_models["templates"], self.want(sparse_models)
        module = load("templates")
        for name in ("IDLE_S", "AFTER_ERROR_S"):
            monkeypatch.setattr(module, name, 0.01)
        wanted, errors = templates._store.wanted, iter([OSError(24, "Too many open files")])

        def failing(bundle: str) -> list[RecordingKey]:
            for error in errors:
                raise error
            return list(wanted(bundle))

        monkeypatch.setattr(templates._store, "wanted", failing)
        templates._thread.start()
        end = time.monotonic() + 30
        while wanted(sparse_models["digest"]):
            assert time.monotonic() < end, "the thread has ended"
            time.sleep(0.01)
        templates.finalize()
        templates._thread.join(30)
        assert sparse_models["recorder"].keys == [key]
        assert any("Too many open files" in line for line in pb_utils.Logger.lines)


def test_templates_are_registered_listed_and_evicted(sparse_models: dict[str, Any]) -> None:
    def ask(**values: Any) -> dict[str, Any]:
        given = inputs(**{k: v for k, v in values.items() if k != "IMAGE"})
        del given["PROMPT"]
        given |= {k: v for k, v in values.items() if k == "IMAGE"}
        response = sparse_models["templates"].execute([pb_utils.Request(**given)])[0]
        if response.error is not None:
            return {"error": response.error.message()}
        answer: dict[str, Any] = json.loads(response.arrays()["RESULT"][0, 0])
        return answer

    assert ask(ACTION="list")["templates"] == []
    image = edit_inputs()["IMAGE"]
    made = ask(ACTION="register", IMAGE=image, STEPS=7)
    assert (made["steps"], made["scheduler"], made["recorded"]) == (7, "euler", True)
    (listed,) = ask(ACTION="list")["templates"]
    assert (listed["template"], listed["width"], listed["height"]) == (made["template"], 64, 96)
    assert [r["steps"] for r in listed["recordings"]] == [7]
    assert ask(ACTION="evict", TEMPLATE="x")["error"].startswith(
        "TEMPLATE is 'x'; accepted: a known"
    )
    assert ask(ACTION="evict", TEMPLATE=made["template"])["bytes"] == made["bytes"]
    assert ask(ACTION="list")["templates"] == []
    assert ask(ACTION="register")["error"].startswith("IMAGE is missing, and so is TEMPLATE")
    assert ask(ACTION="frame")["error"] == "ACTION is 'frame'; accepted: register, list, evict"
    small = image[:, :8]
    assert ask(ACTION="register", IMAGE=small)["error"].startswith("IMAGE has 64 x 8 pixels")


def test_a_bundle_without_the_graphs_cannot_register(models: dict[str, Any]) -> None:
    given = {**inputs(ACTION="register"), "IMAGE": edit_inputs()["IMAGE"]}
    del given["PROMPT"]
    sentence, code = message(models["templates"].execute([pb_utils.Request(**given)])[0])
    assert sentence.startswith("ACTION is 'register'; accepted: list, evict, since the bundle has")
    assert code == pb_utils.TritonError.INVALID_ARG

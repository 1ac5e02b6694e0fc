"""What `templates` records when nobody waits for it."""

from __future__ import annotations

import dataclasses
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tessera.shared.rows import Phase
from tessera.templates.store import RecordingKey, TemplateStore
from tests.fakes import triton_python_backend_utils as pb_utils
from tests.fakes.calls import edit_inputs, load
from tests.samples.waiting import comes


class TestIdle:
    """What the `templates` model records when nobody waits."""

    def want(self, models: dict[str, Any]) -> RecordingKey:
        """The key that an automatic edit has found missing."""
        models["edit"].execute([pb_utils.Request(**edit_inputs(STEPS=4, EDIT_QUALITY="fast"))])
        (key,) = models["templates"]._store.notes.keys(models["digest"])
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
        assert other.notes.keys(sparse_models["digest"]) == [key]
        templates._record_wanted()
        assert [k.steps for k in sparse_models["recorder"].keys] == [7, 4]
        assert not other.notes.keys(sparse_models["digest"])

    def test_does_not_queue_behind_a_registration(self, sparse_models: dict[str, Any]) -> None:
        templates, key = sparse_models["templates"], self.want(sparse_models)
        with templates._busy, ThreadPoolExecutor(1) as pool:
            pool.submit(templates._record_wanted).result(30)
        assert templates._store.notes.keys(sparse_models["digest"]) == [key]

    @pytest.mark.parametrize("reason", ["registration", "other process", "end", "nothing runs"])
    def test_gives_way_until_somebody_waits(
        self, sparse_models: dict[str, Any], reason: str
    ) -> None:
        """Or nothing is denoised any more, or the server ends."""
        templates, board = sparse_models["templates"], sparse_models["board"]
        key, ends = self.want(sparse_models), list[float]()
        slot, ticket = board.open("denoised", 9)
        board.progress(slot, ticket, Phase.DENOISING, 1)
        began = time.monotonic()
        other = TemplateStore(templates._store.root, budget=10**9)

        def give_way() -> None:
            with templates._busy, templates._store.locked(key):
                templates._give_way(key)
                ends.append(time.monotonic() - began)

        def wait() -> None:
            with {"registration": templates._busy, "other process": other.locked(key)}[reason]:
                pass

        with ThreadPoolExecutor(2) as pool:
            giving = pool.submit(give_way)
            time.sleep(0.2)
            assert not giving.done()
            if reason == "end":
                templates.finalize()
            elif reason == "nothing runs":
                board.progress(slot, ticket, Phase.DECODING)
            else:
                pool.submit(wait)
            giving.result(30)
        assert 0.2 <= ends[0] < load("templates").GIVE_WAY_S

    def test_comes_sooner_if_it_is_wanted_again(
        self, sparse_models: dict[str, Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What came once waits until nothing has been denoised for long."""
        templates, once = sparse_models["templates"], self.want(sparse_models)
        again = dataclasses.replace(once, steps=6)
        for _ in range(2):
            templates._store.notes.put(again)
        for name, value in (("IDLE_S", 0.01), ("ONCE_IDLE_S", 600.0)):
            monkeypatch.setattr(load("templates"), name, value)
        templates._thread.start()
        comes(lambda: templates._store.notes.keys(sparse_models["digest"]) == [once])
        monkeypatch.setattr(load("templates"), "ONCE_IDLE_S", 0.01)
        comes(lambda: not templates._store.notes.keys(sparse_models["digest"]))
        templates.finalize()
        templates._thread.join(30)
        assert sparse_models["recorder"].keys == [again, once]

    def test_goes_on_after_an_error(
        self, sparse_models: dict[str, Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        templates, key = sparse_models["templates"], self.want(sparse_models)
        module = load("templates")
        for name in ("IDLE_S", "ONCE_IDLE_S", "AFTER_ERROR_S"):
            monkeypatch.setattr(module, name, 0.01)
        wanted, errors = templates._store.notes.keys, iter([OSError(24, "Too many open files")])

        def failing(bundle: str, *, again: bool) -> list[RecordingKey]:
            for error in errors:
                raise error
            return list(wanted(bundle, again=again))

        monkeypatch.setattr(templates._store.notes, "keys", failing)
        templates._thread.start()
        end = time.monotonic() + 300
        while wanted(sparse_models["digest"]):
            assert time.monotonic() < end, "the thread has ended"
            time.sleep(0.01)
        templates.finalize()
        templates._thread.join(30)
        assert sparse_models["recorder"].keys == [key]
        assert any("Too many open files" in line for line in pb_utils.Logger.lines)

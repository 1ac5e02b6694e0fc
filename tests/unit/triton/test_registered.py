"""What clients register stays; what edits wait for does not."""

from __future__ import annotations

from typing import Any

from tests.fakes import triton_python_backend_utils as pb_utils
from tests.fakes.calls import edit_inputs
from tests.samples.requests import inputs


def test_only_what_clients_register_is_protected(sparse_models: dict[str, Any]) -> None:
    templates, store = sparse_models["templates"], sparse_models["templates"]._store
    edit = edit_inputs(PROMPT="a star", STEPS=4, MODE="sparse")
    assert sparse_models["edit"].execute([pb_utils.Request(**edit)])[0].error is None
    store.budget = sum(recording.bytes for recording in store.recordings())
    assert store.has_room(store.budget), "an edit has waited for it"
    given = inputs(ACTION="register", PROMPT="a star", STEPS=4)
    request = pb_utils.Request(**given, IMAGE=edit_inputs()["IMAGE"])
    assert templates.execute([request])[0].error is None
    assert not store.has_room(1)

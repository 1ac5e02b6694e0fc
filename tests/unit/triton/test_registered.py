"""What clients register stays; what edits wait for does not, nor texts that nothing needs."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch

from tests.fakes import triton_python_backend_utils as pb_utils
from tests.fakes.calls import edit_inputs, load
from tests.samples.requests import inputs
from tests.samples.waiting import comes


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


def test_texts_that_nothing_needs_leave_though_nothing_is_recorded(
    sparse_models: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as those of a server that is never idle, or whose recordings have no room."""
    edit = edit_inputs(STEPS=4, EDIT_QUALITY="fast")
    assert sparse_models["edit"].execute([pb_utils.Request(**edit)])[0].error is None
    templates, store = sparse_models["templates"], sparse_models["templates"]._store
    (key,) = store.notes.keys(sparse_models["digest"])
    for name in (key.digest, "unneeded", "new"):
        store.texts.put(name, {"hidden": torch.zeros(3, 2), "pooled": torch.zeros(4)})
    for name in (key.digest, "unneeded"):
        os.utime(store.root / "texts" / f"{name}.safetensors", (0, 0))
    monkeypatch.setattr(load("templates"), "IDLE_S", 0.01)
    sparse_models["board"].open("goes on", 1)
    templates._thread.start()
    comes(lambda: store.texts.get("unneeded") is None)
    templates.finalize()
    templates._thread.join(30)
    assert store.texts.get(key.digest) is not None
    assert store.texts.get("new") is not None
    assert not sparse_models["recorder"].keys

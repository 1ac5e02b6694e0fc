"""Recordings of prompts with words of textual inversion, whose files are replaced."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

from tessera.codec.words import NO_WORDS, Words
from tests.fakes import triton_python_backend_utils as pb_utils
from tests.fakes.calls import edit_inputs, plan_in
from tests.samples.requests import inputs


def test_a_replaced_file_makes_another_prompt_of_its_word(sparse_models: dict[str, Any]) -> None:
    encode, templates = sparse_models["encode"], sparse_models["templates"]
    said: dict[str, Any] = {"PROMPT": "a blob", "NEGATIVE_PROMPT": "blob", "STEPS": 4}
    found, embeddings = [], encode._embeddings
    encode._embeddings = lambda request, guided, words: embeddings(request, guided, NO_WORDS)
    for value in (1.0, 2.0):
        words = Words.of({"blob": [torch.full((2, 4), value)]})
        encode._inversions = SimpleNamespace(words=lambda words=words: words)
        vars(templates)["_words"] = encode._inversions.words
        request = pb_utils.Request(**edit_inputs(**said, MODE="auto"))
        found.append(plan_in(encode.execute([request])[0].arrays()).texts)
        given = inputs(ACTION="register", **said)
        request = pb_utils.Request(**given, IMAGE=edit_inputs()["IMAGE"])
        assert templates.execute([request])[0].error is None
        recorded = sparse_models["recorder"].keys[-2:]
        assert tuple(key.text for key in recorded) == found[-1], "an edit finds what was registered"
    assert not set(found[0]) & set(found[1])

"""Sparse edits read recordings of what their branches are told, against dense edits of SDXL."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from tessera.denoise.canvas import TEMPLATE_SEED
from tests.fakes import triton_python_backend_utils as pb_utils
from tests.fakes.calls import edit_inputs


def edited(models: dict[str, Any], template: int, **values: Any) -> tuple[Any, dict[str, Any]]:
    """The picture and INFO of an edit that is one evaluation, of the template's own noise."""
    given = edit_inputs(SEED=TEMPLATE_SEED, STEPS=10, GUIDANCE=9.0, strength=0.1, **values)
    given["IMAGE"] = np.roll(given["IMAGE"], template, 1)
    response = models["edit"].execute([pb_utils.Request(**given)])[0]
    assert response.error is None, response.error
    arrays = response.arrays()
    return arrays["IMAGE"].astype(int), json.loads(arrays["INFO"][0, 0])


def test_from_the_templates_noise_a_sparse_step_is_the_dense_one(xl_models: dict[str, Any]) -> None:
    """What is recorded is then what a dense step computes, if both have the same embeddings. A
    negative prompt that is left out is zeros, and an empty one that is given is encoded.
    """
    dense = {}
    for template, negative in enumerate((None, "", "a blue star")):
        said = {} if negative is None else {"NEGATIVE_PROMPT": negative}
        dense[negative], _ = edited(xl_models, template, MODE="dense", **said)
        sparse, info = edited(xl_models, template, MODE="sparse", **said)
        assert (info["mode"], info["recording"]) == ("sparse", "own")
        assert np.abs(sparse - dense[negative]).max() <= 2, negative
    empty, _ = edited(xl_models, 0, MODE="dense", NEGATIVE_PROMPT="")
    assert np.abs(dense[None] - empty).max() > 20, "zeros are another negative prompt"

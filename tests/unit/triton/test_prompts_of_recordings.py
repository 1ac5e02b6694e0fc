"""Which prompts edits and registrations have recorded where a negative one is left out: zeros with
SDXL. Sparse edits of SDXL against dense ones.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from tessera.denoise.canvas import TEMPLATE_SEED
from tessera.templates.texts import ZEROED, text_id
from tests.fakes import triton_python_backend_utils as pb_utils
from tests.fakes.calls import edit_inputs, plan_in
from tests.samples.requests import inputs


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


@pytest.mark.parametrize(
    ("given", "texts"),
    [
        ({"PROMPT": "a star"}, [ZEROED, text_id("a star")]),
        ({"PROMPT": "a star", "NEGATIVE_PROMPT": ""}, ["", text_id("a star")]),
        ({"PROMPT": "a star", "NEGATIVE_PROMPT": "x"}, [text_id("x"), text_id("a star")]),
        ({"PROMPT": "", "NEGATIVE_PROMPT": "x"}, [text_id("x"), ""]),
        ({"PROMPT": "", "LORAS": '[{"name": "night"}]'}, [""]),
        ({"PROMPT": ""}, [""]),
    ],
    ids=["left out", "empty", "given", "without a prompt", "with LoRAs", "nothing"],
)
def test_a_negative_prompt_that_is_left_out_is_zeros_for_sdxl(
    zero_models: dict[str, Any], given: dict[str, Any], texts: list[str]
) -> None:
    templates, recorder = zero_models["templates"], zero_models["recorder"]
    image = {"IMAGE": edit_inputs()["IMAGE"]}
    request = pb_utils.Request(**inputs(ACTION="register", STEPS=4, **given), **image)
    response = templates.execute([request])[0]
    assert response.error is None, response.error
    assert [key.text for key in recorder.keys] == texts
    if texts[0] == ZEROED:
        zeros = templates._store.texts.get(recorder.keys[0].digest)
        assert not any(tensor.any() for tensor in zeros.values())
    if not given.get("PROMPT"):
        return
    edit = edit_inputs(STEPS=4, MODE="sparse", **given)
    assert zero_models["edit"].execute([pb_utils.Request(**edit)])[0].error is None
    assert len(recorder.keys) == 2, "the edit found both"


def test_an_edit_has_its_zeros_recorded(zero_models: dict[str, Any]) -> None:
    given = edit_inputs(STEPS=4, MODE="sparse", PROMPT="a star")
    assert zero_models["edit"].execute([pb_utils.Request(**given)])[0].error is None
    negative, own = zero_models["recorder"].keys
    assert (negative.text, own.text) == (ZEROED, text_id("a star"))
    texts = zero_models["templates"]._store.texts
    assert not texts.get(negative.digest)["hidden"].any()
    assert texts.get(own.digest)["hidden"].any()


def test_what_was_recorded_as_empty_before_is_no_longer_an_edits_own(
    zero_models: dict[str, Any],
) -> None:
    """It serves until the zeros are recorded, which the edit asks for."""
    image, recorder = edit_inputs()["IMAGE"], zero_models["recorder"]
    register = inputs(ACTION="register", PROMPT="a star", NEGATIVE_PROMPT="", STEPS=4)
    zero_models["templates"].execute([pb_utils.Request(**register, IMAGE=image)])
    given = edit_inputs(STEPS=4, MODE="sparse", PROMPT="a star")
    encoded = zero_models["encode"].execute([pb_utils.Request(**given)])[0]
    plan = plan_in(encoded.arrays())
    assert plan.recorded
    assert plan.texts == (ZEROED, text_id("a star"))
    wanted = zero_models["templates"]._store.notes.keys(zero_models["digest"])
    assert [key.text for key in wanted] == [ZEROED]
    assert len(recorder.keys) == 2

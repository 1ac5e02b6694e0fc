"""Previews: `jobs` asks, `denoise` writes, and `decode` makes pixels."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tessera.engines.timed import TimedEngine
from tessera.manifest import LinearDecoder, write_manifest
from tests.fakes import triton_python_backend_utils as pb_utils
from tests.fakes.calls import edit_inputs, message, sequence
from tests.samples.requests import MANIFEST, inputs

DECODER = LinearDecoder(np.eye(4, 3).tolist(), [128.0, 128.0, 128.0], r2=0.9, rmse=9.0)


@pytest.fixture
def previewed(models: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    """Models of a bundle with a linear decoder."""
    (tmp_path / "bundle").mkdir()
    write_manifest(tmp_path / "bundle", dataclasses.replace(MANIFEST, linear_decoder=DECODER))
    return models


def ask(models: dict[str, Any], **values: str) -> pb_utils.InferenceResponse:
    request = pb_utils.Request(**inputs(ACTION="preview", JOB_ID="j", **values))
    response: pb_utils.InferenceResponse = models["jobs"].execute([request])[0]
    return response


def preview(models: dict[str, Any], **values: str) -> tuple[dict[str, Any], Any]:
    arrays = ask(models, **values).arrays()
    return json.loads(arrays["RESULT"][0, 0]), arrays["IMAGE"][0]


def test_latents_are_written_for_watched_jobs_only(previewed: dict[str, Any]) -> None:
    denoise = previewed["denoise"]
    watched = sequence(previewed, 1, STEPS=9, JOB_ID="j", WIDTH=64, HEIGHT=96)
    other = sequence(previewed, 2, STEPS=9, JOB_ID="other")
    denoise.execute([watched, other])
    answer, image = preview(previewed)
    assert (answer["step"], answer["picture_step"], image.shape) == (1, None, (0, 0, 3))
    denoise.execute([watched, other])
    answer, image = preview(previewed)
    assert (answer["step"], answer["picture_step"], answer["total"]) == (2, 2, 9)
    assert (answer["phase"], answer["decoder"]) == ("denoising", "linear")
    assert (answer["width"], answer["height"]) == (64, 96)
    assert image.shape == (24, 16, 3)
    clean = denoise._running[1].predicted[0].numpy()
    expected = (clean[:3].transpose(1, 2, 0) + 128).round().clip(0, 255)
    np.testing.assert_array_equal(image, expected.astype(np.uint8))
    assert denoise._previews._number == 1


def test_the_vae_makes_the_pixels_on_request(previewed: dict[str, Any]) -> None:
    request = sequence(previewed, 1, STEPS=9, JOB_ID="j", WIDTH=64, HEIGHT=96)
    preview(previewed)
    previewed["denoise"].execute([request])
    answer, image = preview(previewed, DECODER="vae")
    assert (answer["picture_step"], answer["decoder"], image.shape) == (1, "vae", (96, 64, 3))
    assert previewed["board"].status("j").phase == "denoising", "a preview ends no job"


def test_decode_says_that_it_is_at_a_preview(previewed: dict[str, Any]) -> None:
    """Else pictures that wait for it would be lost."""
    request = sequence(previewed, 1, STEPS=9, JOB_ID="j")
    preview(previewed)
    previewed["denoise"].execute([request])
    decode, said = previewed["decode"], list[int]()
    engine = decode._engine

    class Watched:
        def run(self, given: Any) -> Any:
            said.append(int(previewed["board"]._header["previewing"]))
            return engine.run(given)

    decode._engine = TimedEngine(Watched())  # type: ignore[arg-type]
    preview(previewed, DECODER="vae")
    said.append(int(previewed["board"]._header["previewing"]))
    assert said == [os.getpid(), 0]


def test_one_preview_by_the_vae_at_a_time(previewed: dict[str, Any]) -> None:
    request = sequence(previewed, 1, STEPS=9, JOB_ID="j")
    preview(previewed)
    previewed["denoise"].execute([request])
    with previewed["jobs"]._previews.alone():
        sentence, status = message(ask(previewed, DECODER="vae"))
    assert sentence.startswith("the VAE is at another preview")
    assert status == pb_utils.TritonError.UNAVAILABLE
    assert preview(previewed, DECODER="vae")[0]["picture_step"] == 1


def test_outside_the_mask_the_template_is_there_from_the_first_step(
    previewed: dict[str, Any],
) -> None:
    values = edit_inputs(STEPS=9, JOB_ID="j")
    edit = previewed["encode"].execute([pb_utils.Request(**values)])[0].arrays()
    del edit["PIXELS"]
    request = pb_utils.Request(1, True, **edit, QUEUED_TICK=np.array([[0]]))
    preview(previewed)
    previewed["denoise"].execute([request])
    image = preview(previewed)[1].astype(int)
    template = (edit["CLEAN"][0][:3].transpose(1, 2, 0) + 128).round().clip(0, 255)
    outside = edit["ACTIVE"][0] == 0
    np.testing.assert_array_equal(image[outside], template[outside])
    assert (image[~outside] != template[~outside]).any()


@pytest.mark.parametrize(
    ("decoder", "sentence"),
    [
        ("linear", "DECODER is linear, which the bundle bundle was built without; accepted: vae"),
        ("tiny", "DECODER is 'tiny'; accepted: linear, vae"),
    ],
)
def test_a_decoder_that_is_not_there_is_named(
    models: dict[str, Any], tmp_path: Path, decoder: str, sentence: str
) -> None:
    (tmp_path / "bundle").mkdir()
    write_manifest(tmp_path / "bundle", MANIFEST)
    text, status = message(ask(models, DECODER=decoder))
    assert text.startswith(sentence)
    assert status == pb_utils.TritonError.INVALID_ARG


def test_a_preview_of_no_job(previewed: dict[str, Any]) -> None:
    text, status = message(ask(previewed))
    assert text.startswith("JOB_ID is 'j'")
    assert status == pb_utils.TritonError.NOT_FOUND

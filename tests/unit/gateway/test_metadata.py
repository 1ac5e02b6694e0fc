"""What a PNG says of how it was made."""

from __future__ import annotations

import io
import json

import pytest
from PIL import Image, PngImagePlugin

from tessera_client import Info, Result
from tessera_gateway.pictures import encode

PICTURE = Image.new("RGB", (8, 8))


def result(scheduler: str, prompt: str, **settings: object) -> Result:
    loras = [{"name": "ink", "weight": 0.5, "text_weight": 0.5, "digest": "abc"}]
    info = Info(
        job_id="j",
        bundle="demo",
        seed=7,
        steps=20,
        guidance=4.5,
        width=8,
        height=8,
        scheduler=scheduler,
        loras=loras,
        encode_ms=1.0,
        decode_ms=1.0,
        total_ms=9.0,
    )
    return Result(PICTURE, info, prompt, settings)


@pytest.mark.parametrize(
    ("scheduler", "names"),
    [
        ("euler_ancestral", "Sampler: Euler a, CFG"),
        ("dpmpp_2m_karras", "Sampler: DPM++ 2M, Schedule type: Karras, CFG"),
    ],
)
def test_parameters_as_front_ends_read_them(scheduler: str, names: str) -> None:
    texts = result(scheduler, "a cat", negative_prompt="a dog", strength=0.4).texts()
    assert texts["parameters"].splitlines()[:2] == [
        "a cat <lora:ink:0.5>",
        "Negative prompt: a dog",
    ]
    last = texts["parameters"].splitlines()[2]
    assert last.startswith("Steps: 20, ")
    assert names in last
    assert " scale: 4.5, Seed: 7, Size: 8x8, Model: demo, Denoising strength: 0.4, Version" in last
    content = json.loads(texts["tessera"])
    assert (content["prompt"], content["info"]["seed"]) == ("a cat", 7)


def test_prompts_of_every_language_are_in_the_file() -> None:
    prompt = "eine Kätzin, 猫 \x00"
    drawn = result("euler", prompt)
    file = encode(PICTURE, texts=drawn.texts())
    picture = Image.open(io.BytesIO(file))
    assert isinstance(picture, PngImagePlugin.PngImageFile)
    assert picture.text["parameters"].startswith("eine Kätzin, 猫 ")
    assert json.loads(picture.text["tessera"])["prompt"] == prompt
    with Image.open(io.BytesIO(drawn.to_bytes())) as own:
        assert own.info["tessera"] == picture.text["tessera"]

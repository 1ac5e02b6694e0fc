"""img2img on a real server: what is edited, and what stays as it was, bit for bit."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from bench.server import Server
from tessera_client import Client, Control, Result
from tests.samples.sdapi import FrontEnd, file_of, opened, pixels
from tests.samples.waiting import again_until

CIRCLE = "a large red circle at the left on a blue background"
PICTURE = Image.linear_gradient("L").resize((128, 128)).convert("RGB")
MASK = Image.new("L", (128, 128))
ImageDraw.Draw(MASK).rectangle((40, 48, 71, 79), fill=255)
INSIDE = np.asarray(MASK) == 255
COMMON: dict[str, Any] = {"prompt": CIRCLE, "steps": 4, "seed": 5, "sampler_name": "Euler"}
EDIT = COMMON | {"init_images": [file_of(PICTURE)], "denoising_strength": 1.0}
WHOLE = EDIT | {"mask": file_of(MASK), "inpaint_full_res": False, "inpainting_fill": 1}


def test_a_whole_picture(server: Server, webui: FrontEnd) -> None:
    everything = np.full((128, 128), 255, np.uint8)
    body = EDIT | {"denoising_strength": 0.5}
    drawn, _ = as_by_the_sdk(server, webui, body, PICTURE, everything, strength=0.5)
    assert json.loads(drawn["info"])["denoising_strength"] == 0.5
    assert "init_images" not in drawn["parameters"]


def test_a_mask_without_blur_is_the_servers(server: Server, webui: FrontEnd) -> None:
    drawn, wanted = as_by_the_sdk(server, webui, WHOLE | {"mask_blur": 0}, PICTURE, MASK)
    np.testing.assert_array_equal(pixels(drawn["images"][0]), np.asarray(wanted.image))


def as_by_the_sdk(
    server: Server,
    webui: FrontEnd,
    body: dict[str, Any],
    image: Any,
    mask: Any,
    *,
    strength: float = 1.0,
) -> tuple[Any, Result]:
    """What the gateway draws and the SDK draws, which is the same but for what happens between the
    two: their templates may be recorded then, and the second edit may be sparse.
    """
    options: dict[str, Any] = {"steps": 4, "seed": 5, "scheduler": "euler", "strength": strength}
    with Client(server.http) as client:

        def both() -> tuple[Any, Result]:
            return webui.post("img2img", body), client.edit(image, mask, CIRCLE, **options)

        def same(drawn: tuple[Any, Result]) -> bool:
            return np.array_equal(np.asarray(drawn[1].image), pixels(drawn[0]["images"][0]))

        return again_until(both, same)


@pytest.mark.parametrize("fill", [0, 1, 2], ids=["filled", "original", "noise"])
@pytest.mark.parametrize("only_masked", [False, True], ids=["whole", "only masked"])
def test_what_is_far_from_the_mask_stays(webui: FrontEnd, fill: int, only_masked: bool) -> None:
    body = WHOLE | {"inpainting_fill": fill, "inpaint_full_res": only_masked, "mask_blur": 4}
    drawn = pixels(webui.post("img2img", body | {"inpaint_full_res_padding": 16})["images"][0])
    before = np.asarray(PICTURE)
    far = np.ones((128, 128), bool)
    far[24:104, 16:96] = False
    assert np.array_equal(drawn[far], before[far])
    assert np.abs(drawn[INSIDE].astype(int) - before[INSIDE]).mean() > 20
    border = np.abs(drawn[44:48, 40:72].astype(int) - before[44:48, 40:72])
    assert border.mean() > 0


def test_a_mask_that_is_inverted(webui: FrontEnd) -> None:
    body = WHOLE | {"mask_blur": 0, "inpainting_mask_invert": 1}
    drawn = pixels(webui.post("img2img", body)["images"][0])
    assert np.array_equal(drawn[INSIDE], np.asarray(PICTURE)[INSIDE])
    assert not np.array_equal(drawn[~INSIDE], np.asarray(PICTURE)[~INSIDE])


def test_only_masked_is_the_servers_crop(server: Server, webui: FrontEnd) -> None:
    """A mask of 32 x 32 pixels with 16 around it is drawn at 128 x 128, and put back."""
    body = WHOLE | {"mask_blur": 0, "inpaint_full_res": True, "inpaint_full_res_padding": 16}
    more = {"edit_quality": "best", "mode": "dense", "mask_feather": 9, "mask_tone": "matched"}
    body |= {"inpainting_fill": 0, "denoising_strength": 0.75, "tessera": more}
    drawn = webui.post("img2img", body)
    with Client(server.http) as client:
        own = client.edit(
            PICTURE,
            MASK,
            CIRCLE,
            steps=4,
            seed=5,
            scheduler="euler",
            strength=0.75,
            padding_mask_crop=16,
            width=128,
            height=128,
            mask_fill="blur",
            quality="best",
            mode="dense",
            mask_feather=9,
            mask_tone="matched",
        )
    assert own.info.frame == {"box": [24, 32, 88, 96], "scaled": [128, 128]}
    assert np.array_equal(np.asarray(own.image), pixels(drawn["images"][0]))
    assert drawn["parameters"]["tessera"] == more


@pytest.mark.parametrize("mode", [0, 1, 2])
def test_another_size(webui: FrontEnd, mode: int) -> None:
    body = EDIT | {"width": 96, "height": 128, "resize_mode": mode, "denoising_strength": 0.3}
    assert opened(webui.post("img2img", body)["images"][0]).size == (96, 128)


def test_a_large_picture_keeps_its_size_when_only_the_mask_is_drawn(webui: FrontEnd) -> None:
    large, mask = PICTURE.resize((600, 400)), MASK.resize((600, 400))
    body = EDIT | {"init_images": [file_of(large)], "mask": file_of(mask)}
    drawn = webui.post("img2img", body | {"width": 128, "height": 128})
    assert opened(drawn["images"][0]).size == (600, 400)


def test_a_control_net(server: Server, webui: FrontEnd) -> None:
    unit = {
        "enabled": True,
        "module": "canny",
        "model": "edges [0123abcd]",
        "weight": 0.8,
        "image": file_of(MASK.convert("RGB")),
        "resize_mode": "Just Resize",
        "guidance_end": 0.9,
        "threshold_a": 50,
        "threshold_b": 120,
        "pixel_perfect": True,
        "control_mode": "Balanced",
    }
    off = {"enabled": False, "model": "nothing"}
    scripts = {"controlnet": {"args": [unit, off]}}
    size = {"width": 128, "height": 128}
    drawn = webui.post("txt2img", COMMON | size | {"alwayson_scripts": scripts})
    control = Control(
        "edges",
        MASK.convert("RGB"),
        scale=0.8,
        end=0.9,
        preprocess="canny",
        resize="stretch",
        low=50,
        high=120,
    )
    with Client(server.http) as client:
        own = client.generate(
            CIRCLE, steps=4, seed=5, scheduler="euler", width=128, height=128, controls=[control]
        )
    assert np.array_equal(np.asarray(own.image), pixels(drawn["images"][0]))


def test_a_unit_without_an_image_takes_the_edited_one(webui: FrontEnd) -> None:
    scripts = {"ControlNet": {"args": [{"module": "canny", "model": "edges"}]}}
    assert webui.post("img2img", EDIT | {"alwayson_scripts": scripts})["images"]


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no picture": ({"init_images": []}, "init_images is []; accepted: "),
    "two": ({"init_images": ["a", "b"]}, "init_images is "),
    "no base64": ({"init_images": ["!"]}, "init_images[0] is no base64"),
    "no file": ({"init_images": ["aGk="]}, "init_images[0] cannot be read as a picture"),
    "a URL": ({"init_images": ["http://localhost/x.png"]}, "init_images[0] is no data URL"),
    "a mask of another size": (
        {"mask": file_of(MASK.resize((64, 64)))},
        "mask has 64 x 64 pixels; accepted: 128 x 128",
    ),
    "an empty mask": ({"mask": file_of(Image.new("L", (128, 128)))}, "mask has nothing to edit"),
    "strength": ({"denoising_strength": 0}, "denoising_strength is 0; accepted: greater than 0"),
    "resize_mode": ({"resize_mode": 3}, "resize_mode is 3; accepted: "),
    "fill": ({"inpainting_fill": 3}, "inpainting_fill is 3; accepted: less than or equal to 2"),
    "too many": ({"batch_size": 8, "n_iter": 3}, "batch_size times n_iter is 24; accepted: up to"),
    "a size of nothing": ({"width": 0}, "width is 0"),
    "too large": ({"width": 8000, "height": 8000}, "width is 8000; accepted: "),
    "a unit without a model": (
        {"alwayson_scripts": {"controlnet": {"args": [{}]}}},
        "alwayson_scripts.controlnet.args",
    ),
    "a unit of another module": (
        {"alwayson_scripts": {"controlnet": {"args": [{"module": "openpose", "model": "edges"}]}}},
        "alwayson_scripts.controlnet.args[0].module is 'openpose'; accepted: none, canny",
    ),
    "no units": ({"alwayson_scripts": {"controlnet": {}}}, "has no list of units"),
}


@pytest.mark.parametrize(("changed", "sentence"), BAD.values(), ids=BAD.keys())
def test_what_is_not_accepted(webui: FrontEnd, changed: dict[str, Any], sentence: str) -> None:
    answer = webui.send("POST", "img2img", EDIT | changed)
    assert answer.status == 400, answer
    assert sentence in json.loads(answer.body)["detail"]


def test_keys(guarded: list[FrontEnd]) -> None:
    bearer, basic, stranger = guarded
    for page in (bearer, basic):
        assert page.get("options")["sd_model_checkpoint"] == "demo"
    for path in ("options", "progress", "samplers"):
        refused = stranger.send("GET", path)
        assert refused.status == 401
        assert "Authorization" in json.loads(refused.body)["detail"]
    assert stranger.send("POST", "txt2img", COMMON).status == 401

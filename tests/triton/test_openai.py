"""OpenAI's own Python package, unmodified, against the gateway in front of a real server."""

from __future__ import annotations

import base64
import io
import json
import urllib.request
from collections.abc import Iterator
from typing import Any

import numpy as np
import openai
import pytest
from openai import OpenAI
from openai.types import ImagesResponse
from PIL import Image

from bench.server import Server
from tessera.types import Array
from tessera_client import Client, Lora
from tests.samples.gateways import RunningGateway, gateway
from tests.samples.waiting import again_until

CIRCLE = "a large red circle at the left on a blue background"
SQUARE = "a large green square in the center on a striped white background"
STEPS = 10


@pytest.fixture(scope="module")
def running(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    with gateway(server.grpc, tmp_path_factory.mktemp("gateway") / "log") as started:
        yield started


@pytest.fixture
def api(running: RunningGateway) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def ours(**fields: Any) -> dict[str, Any]:
    return {"tessera": {"steps": STEPS, **fields}}


def opened(data: str | None) -> Image.Image:
    assert data
    return Image.open(io.BytesIO(base64.b64decode(data)))


def pixels(picture: Image.Image) -> Array:
    return np.asarray(picture.convert("RGB"))


def file_of(picture: Image.Image) -> bytes:
    sink = io.BytesIO()
    picture.save(sink, "PNG")
    return sink.getvalue()


def hole(width: int, height: int) -> Image.Image:
    """A mask as OpenAI has it: transparent where to edit."""
    alpha = np.full((height, width), 255, np.uint8)
    alpha[32:96, 8:72] = 0
    picture = Image.new("RGB", (width, height))
    picture.putalpha(Image.fromarray(alpha))
    return picture


def test_a_picture_is_the_one_of_the_sdk_bit_for_bit(api: OpenAI, http_client: Client) -> None:
    loras = [{"name": "outline", "weight": 0.8}]
    answer = api.images.generate(
        prompt=SQUARE,
        model="demo",
        size="128x128",
        extra_body=ours(seed=3, guidance=4.0, loras=loras, negative_prompt="red"),
    )
    assert answer.data
    result = http_client.generate(
        SQUARE,
        seed=3,
        steps=STEPS,
        guidance=4.0,
        loras=[Lora("outline", 0.8)],
        negative_prompt="red",
    )
    picture = opened(answer.data[0].b64_json)
    assert (pixels(picture) == pixels(result.image)).all()
    said = answer.data[0].to_dict()["tessera"]
    assert isinstance(said, dict)
    assert (said["seed"], said["info"]["steps"]) == (3, STEPS)
    assert (answer.size, answer.background, answer.output_format) == ("128x128", "opaque", "png")
    assert answer.usage
    assert answer.usage.output_tokens == 256
    assert answer.usage.input_tokens == said["info"]["prompt_tokens"] > 10
    assert json.loads(picture.text["tessera"])["info"]["seed"] == 3  # type: ignore[attr-defined]
    assert "<lora:outline:0.8>" in picture.text["parameters"]  # type: ignore[attr-defined]


def test_four_pictures_share_their_ticks(api: OpenAI, http_client: Client) -> None:
    """Unless a busy machine lets the first begin long before the last."""

    def drawn() -> tuple[ImagesResponse, list[Any]]:
        answer = api.images.generate(prompt=CIRCLE, n=4, extra_body=ours(seed=5, steps=100))
        assert answer.data
        said: list[Any] = [each.to_dict()["tessera"] for each in answer.data]
        assert [each["seed"] for each in said] == [5, 6, 7, 8]
        return answer, said

    answer, _ = again_until(drawn, lambda d: all(s["info"]["mean_batch"] > 2 for s in d[1]))
    assert answer.data
    result = http_client.generate(CIRCLE, seed=6, steps=100)
    difference = pixels(opened(answer.data[1].b64_json)).astype(int) - pixels(result.image)
    assert np.abs(difference).max() <= 1  # alone or in a batch


def test_a_stream_has_previews_and_the_picture(api: OpenAI, http_client: Client) -> None:
    """A preview is shown if the picture is not done before somebody looks."""

    def streamed() -> list[Any]:
        return list(
            api.images.generate(
                prompt=CIRCLE,
                stream=True,
                partial_images=3,
                quality="max",
                extra_body=ours(seed=2, steps=60),
            )
        )

    *partial, last = again_until(streamed, lambda events: len(events) > 1)
    assert len(partial) <= 3
    for index, event in enumerate(partial):
        assert event.type == "image_generation.partial_image"
        assert event.partial_image_index == index
        assert opened(event.b64_json).size == (128, 128)
        assert (event.size, event.quality) == ("128x128", "max")
    assert last.type == "image_generation.completed"
    result = http_client.generate(CIRCLE, seed=2, steps=60)
    assert (pixels(opened(last.b64_json)) == pixels(result.image)).all()
    assert last.usage.total_tokens == last.usage.input_tokens + last.usage.output_tokens
    drawn = pixels(result.image).astype(int)
    far = np.abs(pixels(opened(partial[-1].b64_json)) - drawn).mean()
    assert far < 60 < np.abs(255 - drawn - drawn).mean()  # it shows this picture


def test_an_edit_with_a_mask_is_the_one_of_the_sdk(api: OpenAI, http_client: Client) -> None:
    image = http_client.generate(CIRCLE, seed=1, steps=STEPS).image
    mask = hole(*image.size)
    answer = api.images.edit(
        image=("image.png", file_of(image)),
        mask=("mask.png", file_of(mask)),
        prompt=SQUARE,
        extra_body=ours(seed=4, mode="dense"),
    )
    assert answer.data
    white = 255 - np.asarray(mask)[..., 3]
    result = http_client.edit(image, white, SQUARE, seed=4, steps=STEPS, mode="dense")
    edited = pixels(opened(answer.data[0].b64_json))
    assert (edited == pixels(result.image)).all()
    outside = white == 0
    assert (edited[outside] == pixels(image)[outside]).all()
    assert answer.usage
    assert answer.usage.input_tokens_details.image_tokens == 256


def test_an_edit_may_be_json_and_a_stream(
    running: RunningGateway, api: OpenAI, http_client: Client
) -> None:
    image = http_client.generate(CIRCLE, seed=1, steps=STEPS).image
    url = "data:image/png;base64," + base64.b64encode(file_of(image)).decode()
    body = {
        "prompt": SQUARE,
        "images": [{"image_url": url}],
        "mask": {"image_url": "data:image/png;base64,"},
        "stream": True,
        "partial_images": 1,
        **ours(seed=4, mode="dense"),
    }
    mask = file_of(hole(*image.size))
    body["mask"] = {"image_url": "data:image/png;base64," + base64.b64encode(mask).decode()}
    request = urllib.request.Request(
        f"{running.url}/v1/images/edits",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request) as answer:
        events = answer.read().decode().split("\n\n")
    last = json.loads(events[-2].partition("data: ")[2])
    assert last["type"] == "image_edit.completed"
    result = http_client.edit(image, (8, 32, 64, 64), SQUARE, seed=4, steps=STEPS, mode="dense")
    assert (pixels(opened(last["b64_json"])) == pixels(result.image)).all()


def test_an_edit_without_a_mask_starts_from_the_picture(api: OpenAI, http_client: Client) -> None:
    image = http_client.generate(CIRCLE, seed=1, steps=STEPS).image
    answer = api.images.edit(
        image=file_of(image), prompt=SQUARE, input_fidelity="high", extra_body=ours(seed=4)
    )
    assert answer.data
    said: Any = answer.data[0].to_dict()["tessera"]
    assert (said["info"]["mask_ratio"], said["info"]["ticks"]) == (1.0, STEPS // 2)


def test_a_template_needs_neither_an_image_nor_a_mask(
    running: RunningGateway, http_client: Client
) -> None:
    image = http_client.generate(CIRCLE, seed=1, steps=STEPS).image
    template = http_client.register_template(image, steps=STEPS).template
    extra = ours(seed=4, mode="dense", template=template, strength=0.5)
    request = urllib.request.Request(
        f"{running.url}/v1/images/edits",
        json.dumps({"prompt": SQUARE, **extra}).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request) as answer:
        content = json.loads(answer.read())
    options: Any = {"seed": 4, "steps": STEPS, "mode": "dense", "strength": 0.5}
    result = http_client.edit(image, None, SQUARE, **options)
    assert (pixels(opened(content["data"][0]["b64_json"])) == pixels(result.image)).all()
    assert content["size"] == f"{image.width}x{image.height}"


def test_a_url_leads_to_the_picture(api: OpenAI) -> None:
    answer = api.images.generate(
        prompt=CIRCLE,
        response_format="url",
        output_format="webp",
        output_compression=80,
        extra_body=ours(),
    )
    assert answer.data
    assert answer.data[0].url
    with urllib.request.urlopen(answer.data[0].url) as found:
        assert found.headers["content-type"] == "image/webp"
        assert Image.open(found).size == (128, 128)


def test_models(api: OpenAI) -> None:
    (model,) = api.models.list()
    assert model.id == "demo"
    found: Any = api.models.retrieve("demo").to_dict()["tessera"]
    assert "outline" in [lora["name"] for lora in found["loras"]]
    assert found["max_size"] == 256


@pytest.mark.parametrize(
    ("fields", "kind", "param", "sentence"),
    [
        ({"model": "dall-e-9"}, openai.NotFoundError, "model", "accepted: demo"),
        ({"size": "100x100"}, openai.BadRequestError, "size", "100"),
        ({"background": "transparent"}, openai.BadRequestError, "background", "opaque"),
        ({"extra_body": {"seed": 1}}, openai.BadRequestError, "seed", "tessera"),
        (
            {"extra_body": {"tessera": {"step": 1}}},
            openai.BadRequestError,
            "tessera.step",
            "guidance, job_id",
        ),
        (
            {"extra_body": {"tessera": {"loras": [{"name": "outlin"}]}}},
            openai.BadRequestError,
            "tessera.loras[0].name",
            "close: outline",
        ),
        (
            {"extra_body": {"tessera": {"scheduler": "lcm", "steps": 51}}},
            openai.BadRequestError,
            "tessera.steps",
            "1 to 50",
        ),
    ],
    ids=["model", "size", "background", "at the top", "in tessera", "lora", "by the server"],
)
def test_errors_are_those_of_the_package(
    api: OpenAI,
    fields: dict[str, Any],
    kind: type[openai.APIStatusError],
    param: str,
    sentence: str,
) -> None:
    with pytest.raises(kind) as raised:
        api.images.generate(prompt=CIRCLE, **fields)
    assert raised.value.param == param
    assert sentence in raised.value.message


def test_an_error_in_a_stream_is_one_of_the_package(api: OpenAI) -> None:
    extra = {"tessera": {"loras": [{"name": "outlin"}]}}
    stream = api.images.generate(prompt=CIRCLE, stream=True, extra_body=extra)
    with pytest.raises(openai.APIError, match=r"tessera\.loras\[0\]\.name is 'outlin'"):
        list(stream)

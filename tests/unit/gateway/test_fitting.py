"""Pictures of one request that do not fit together."""

from __future__ import annotations

import base64
import io
from typing import Any

import pytest
from PIL import Image
from starlette.testclient import TestClient

from tests.fakes.transport import AsyncFakeTransport

GENERATIONS, EDITS = "/v1/images/generations", "/v1/images/edits"
IMAGE, WHITE = Image.new("RGB", (8, 4), "red"), Image.new("L", (8, 4), 255)


def url_of(picture: Image.Image) -> str:
    sink = io.BytesIO()
    picture.save(sink, "PNG")
    return "data:image/png;base64," + base64.b64encode(sink.getvalue()).decode()


def edited(**fields: Any) -> dict[str, Any]:
    return {"prompt": "x", "images": [{"image_url": url_of(IMAGE)}], **fields}


SMALL = url_of(WHITE.resize((4, 4)))


@pytest.mark.parametrize(
    ("extra", "param"),
    [
        ({"mask_image": url_of(WHITE)}, "tessera.regions[0].mask_image"),
        ({}, "tessera.regions[0].mask_image"),
        ({"template": "abc"}, "tessera.regions[1].mask_image"),
    ],
    ids=["mask", "whole", "template"],
)
def test_regions_of_another_size(
    http: TestClient, transport: AsyncFakeTransport, extra: dict[str, Any], param: str
) -> None:
    masks = [SMALL, url_of(WHITE)]
    extra |= {"regions": [{"mask_image": mask, "prompt": "y"} for mask in masks]}
    images = {} if "template" in extra else edited()
    answer = http.post(EDITS, json={"prompt": "x", "tessera": extra, **images})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
    assert f"{param} has " in answer.json()["error"]["message"]
    assert not transport.inner.sent("edit")


@pytest.mark.parametrize("stream", [False, True], ids=["answer", "events"])
@pytest.mark.parametrize("path", [GENERATIONS, EDITS])
def test_controls_of_two_sizes_need_a_resize(
    http: TestClient, transport: AsyncFakeTransport, path: str, stream: bool
) -> None:
    controls = [{"name": "edges", "image": url} for url in (url_of(IMAGE), SMALL)]
    body = {"prompt": "x", "n": 2, "stream": stream} if path == GENERATIONS else edited(n=2)
    answer = http.post(path, json=body | {"tessera": {"controls": controls}})
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert (error["code"], error["param"]) == ("invalid_value", "tessera.controls")
    assert "controls[1].image has 4 x 4 pixels; accepted: 8 x 4, or a resize" in error["message"]
    assert not {"generate", "edit"} & {model for model, _ in transport.inner.calls}
    controls[1]["resize"] = "fill"
    assert http.post(path, json=body | {"tessera": {"controls": controls}}).status_code == 200

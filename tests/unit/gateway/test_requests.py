"""What requests send to the server, and what is wrong with them."""

from __future__ import annotations

import base64
import io
import json
from typing import Any

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from tessera.errors import Cancelled, InternalError, InvalidInput, TimedOut
from tessera_gateway.app import create_app
from tessera_gateway.settings import GatewaySettings
from tests.fakes.transport import AsyncFakeTransport

GENERATIONS, EDITS = "/v1/images/generations", "/v1/images/edits"


def file_of(picture: Image.Image) -> bytes:
    sink = io.BytesIO()
    picture.save(sink, "PNG")
    return sink.getvalue()


def url_of(picture: Image.Image) -> str:
    return "data:image/png;base64," + base64.b64encode(file_of(picture)).decode()


IMAGE = Image.new("RGB", (8, 4), "red")
HOLE = Image.new("RGBA", (8, 4), (0, 0, 0, 0))
WHITE = Image.new("L", (8, 4), 255)


@pytest.mark.parametrize(
    ("quality", "scheduler", "steps"),
    [
        (None, None, None),
        ("auto", None, None),
        ("medium", None, None),
        ("standard", None, None),
        ("whatever", None, None),
        ("low", None, 10),
        ("high", None, 30),
        ("hd", None, 30),
        ("xhigh", None, 40),
        ("max", None, 60),
        ("max", "lcm", 50),
    ],
)
def test_quality_is_a_number_of_steps(
    http: TestClient,
    transport: AsyncFakeTransport,
    quality: str | None,
    scheduler: str | None,
    steps: int | None,
) -> None:
    body = {"prompt": "x", "quality": quality, "tessera": {"scheduler": scheduler}}
    assert http.post(GENERATIONS, json=body).status_code == 200
    (sent,) = transport.inner.sent("generate")
    assert sent.get("STEPS") == steps


def test_pictures_have_seeds_and_job_ids_that_count_up(
    http: TestClient, transport: AsyncFakeTransport
) -> None:
    body = {"prompt": "x", "n": 2, "size": "16x8", "tessera": {"seed": 5, "job_id": "mine"}}
    answer = http.post(GENERATIONS, json=body).json()
    sent = transport.inner.sent("generate")
    assert [each["SEED"] for each in sent] == [5, 6]
    assert [each["JOB_ID"] for each in sent] == [b"mine-1", b"mine-2"]
    assert [(each["WIDTH"], each["HEIGHT"]) for each in sent] == [(16, 8)] * 2
    assert len(answer["data"]) == 2
    assert http.post(GENERATIONS, json={"prompt": "x", "n": 2}).status_code == 200
    first, second = (each["SEED"] for each in transport.inner.sent("generate")[2:])
    assert second == first + 1


def test_a_form_may_have_ours_in_brackets_or_as_json(
    http: TestClient, transport: AsyncFakeTransport
) -> None:
    files = {"image": ("a.png", file_of(IMAGE)), "mask": ("b.png", file_of(HOLE))}
    fields = {"prompt": "x", "n": "1", "tessera[seed]": "3", "tessera[strength]": "0.5"}
    assert http.post(EDITS, files=files, data=fields).status_code == 200
    written = {"prompt": "x", "tessera": json.dumps({"seed": 4, "loras": [{"name": "ink"}]})}
    assert http.post(EDITS, files=files, data=written).status_code == 200
    first, second = transport.inner.sent("edit")
    assert (first["SEED"], first["STRENGTH"]) == (3, 0.5)
    assert second["SEED"] == 4
    assert b"ink" in second["LORAS"]
    assert (first["MASK"] == 255).all()
    assert (first["IMAGE"][0, :4] == np.asarray(IMAGE)).all()


def test_a_text_in_a_form_may_be_as_long_as_the_body(transport: AsyncFakeTransport) -> None:
    """A noisy control image is above 1 MB."""
    noise = np.random.default_rng(0).integers(0, 256, (600, 600, 3), np.uint8)
    control = {"name": "edges", "image": url_of(Image.fromarray(noise)), "resize": "stretch"}
    fields = {"prompt": "x", "tessera": json.dumps({"controls": [control]})}
    assert len(fields["tessera"]) > 2**20
    files = {"image": ("a.png", file_of(IMAGE))}
    with TestClient(create_app(GatewaySettings(), transport=transport)) as http:
        answer = http.post(EDITS, files=files, data=fields)
    assert answer.status_code == 200, answer.text
    (sent,) = transport.inner.sent("edit")
    assert (sent["CONTROL_IMAGES"][0] == noise).all()


def edited(**fields: Any) -> dict[str, Any]:
    return {"prompt": "x", "images": [{"image_url": url_of(IMAGE)}], **fields}


def test_masks_of_both_kinds(http: TestClient, transport: AsyncFakeTransport) -> None:
    half = Image.new("RGBA", (8, 4), (255, 255, 255, 255))
    half.paste((0, 0, 0, 0), (0, 0, 4, 4))
    white = Image.new("L", (8, 4), 0)
    white.paste(255, (0, 0, 4, 4))
    bodies: list[dict[str, Any]] = [
        edited(mask={"image_url": url_of(half)}),
        edited(tessera={"mask_image": url_of(white)}),
        {"prompt": "x", "images": [{"image_url": url_of(half)}]},
    ]
    for body in bodies:
        assert http.post(EDITS, json=body).status_code == 200
    for sent in transport.inner.sent("edit"):
        assert (sent["MASK"][0, :4] == np.asarray(white)).all()
        assert "STRENGTH" not in sent


@pytest.mark.parametrize(
    ("fields", "strength"),
    [
        ({}, 0.8),
        ({"input_fidelity": "low"}, 0.8),
        ({"input_fidelity": "high"}, 0.5),
        ({"input_fidelity": "high", "tessera": {"strength": 0.25, "edit_quality": "best"}}, 0.25),
    ],
    ids=["usual", "low", "high", "said"],
)
def test_an_edit_without_a_mask_keeps_something_of_the_picture(
    http: TestClient, transport: AsyncFakeTransport, fields: dict[str, Any], strength: float
) -> None:
    assert http.post(EDITS, json=edited(**fields)).status_code == 200
    (sent,) = transport.inner.sent("edit")
    assert sent["STRENGTH"] == pytest.approx(strength)
    assert sent.get("EDIT_QUALITY") == (b"best" if "tessera" in fields else None)
    assert (sent["MASK"] == 255).all()


@pytest.mark.parametrize("alpha", [255, 128])
def test_a_picture_that_is_hardly_transparent_is_edited_as_a_whole(
    http: TestClient, transport: AsyncFakeTransport, alpha: int
) -> None:
    picture = IMAGE.convert("RGBA")
    picture.putpixel((3, 2), (255, 0, 0, alpha))
    body = {"prompt": "x", "images": [{"image_url": url_of(picture)}]}
    assert http.post(EDITS, json=body).status_code == 200
    (sent,) = transport.inner.sent("edit")
    assert (sent["MASK"] == 255).all()
    assert sent["STRENGTH"] == pytest.approx(0.8)


def test_what_is_done_with_masks(http: TestClient, transport: AsyncFakeTransport) -> None:
    white = Image.new("L", (8, 4), 100)
    white.paste(255, (0, 0, 4, 4))
    extra: dict[str, Any] = {
        "mask_image": url_of(white),
        "mask_kind": "soft",
        "extend": [8, 0, 0, 4],
    }
    extra |= {"padding_mask_crop": 3, "regions": [{"mask_image": url_of(white), "prompt": "y"}]}
    answer = http.post(EDITS, json=edited(tessera=extra))
    assert answer.status_code == 200, answer.text
    extra = {"mask_image": url_of(white), "mask_fill": "blur", "strength": 0.5}
    extra |= {"mask_feather": 16, "mask_tone": "matched"}
    assert http.post(EDITS, json=edited(tessera=extra)).status_code == 200
    sent, second = transport.inner.sent("edit")
    assert (sent["MASK"][0] == np.asarray(white)).all()
    assert (sent["MASK_KIND"], sent["PADDING_MASK_CROP"]) == (b"soft", 3)
    assert sent["EXTEND"].tolist() == [[8, 0, 0, 4]]
    assert (sent["REGION_MASKS"][0, 0] == np.asarray(white)).all()
    assert sent["REGION_PROMPTS"] == b"y"
    assert second["MASK_FILL"] == b"blur"
    assert (second["MASK_FEATHER"], second["MASK_TONE"]) == (16, b"matched")


def test_room_alone_needs_no_mask(http: TestClient, transport: AsyncFakeTransport) -> None:
    body = edited(tessera={"extend": [0, 0, 8, 0]}, size="16x4")
    assert http.post(EDITS, json=body).status_code == 200
    (sent,) = transport.inner.sent("edit")
    assert not sent["MASK"].any()
    assert "STRENGTH" not in sent
    wrong = http.post(EDITS, json=body | {"size": "8x4"})
    assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "size")


@pytest.mark.parametrize(
    "extra",
    [
        {"mask_kind": "half"},
        {"mask_fill": "paint"},
        {"mask_feather": 0},
        {"mask_tone": "grey"},
        {"padding_mask_crop": -1},
        {"extend": [1, 2, 3]},
        {"extend": [0, 0, 0, -8]},
        {"regions": [{"prompt": "y"}]},
    ],
    ids=lambda extra: "-".join(extra),
)
def test_masks_that_are_not_accepted(
    http: TestClient, transport: AsyncFakeTransport, extra: dict[str, Any]
) -> None:
    answer = http.post(EDITS, json=edited(tessera=extra))
    assert answer.status_code == 400
    assert answer.json()["error"]["param"].startswith(f"tessera.{next(iter(extra))}")
    assert not transport.inner.sent("edit")


@pytest.mark.parametrize(
    ("fields", "strength"),
    [({}, 0.8), ({"strength": 0.25}, 0.25), ({"extend": [0, 0, 8, 0]}, None)],
    ids=["usual", "said", "room"],
)
@pytest.mark.parametrize("stream", [False, True], ids=["answer", "events"])
def test_a_template_needs_no_mask(
    http: TestClient,
    transport: AsyncFakeTransport,
    fields: dict[str, Any],
    strength: float | None,
    stream: bool,
) -> None:
    body = {"prompt": "x", "stream": stream, "tessera": {"template": "abc", **fields}}
    answer = http.post(EDITS, json=body)
    assert answer.status_code == 200, answer.text
    (sent,) = transport.inner.sent("edit")
    assert sent["TEMPLATE"] == b"abc"
    assert not {"MASK", "IMAGE"} & sent.keys()
    assert sent.get("STRENGTH") == (None if strength is None else pytest.approx(strength))
    assert '"size": "8x4"' in answer.text, "the picture's, which only the server knew"
    wrong = http.post(EDITS, json=body | {"size": "8x4"})
    assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "size")


def test_a_crop_has_a_size_to_be_drawn_at(http: TestClient, transport: AsyncFakeTransport) -> None:
    white = {"mask_image": url_of(WHITE)}
    extra = white | {"padding_mask_crop": 3, "width": 64, "height": 56}
    answer = http.post(EDITS, json=edited(tessera=extra))
    assert answer.status_code == 200, answer.text
    assert answer.json()["size"] == "8x4"
    (sent,) = transport.inner.sent("edit")
    assert (sent["WIDTH"], sent["HEIGHT"]) == (64, 56)
    for wrong, param in (
        (extra | {"width": 60}, "tessera.width"),
        (extra | {"height": 0}, "tessera.height"),
        (white | {"height": 64}, "tessera.height"),
    ):
        answer = http.post(EDITS, json=edited(tessera=wrong))
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


@pytest.mark.parametrize(
    ("path", "body", "param", "sentence"),
    [
        (GENERATIONS, {}, "prompt", "prompt is missing"),
        (GENERATIONS, {"prompt": "x", "n": 11}, "n", "n is 11; accepted: less than or equal to 10"),
        (GENERATIONS, {"prompt": "x", "size": "8 x 8"}, "size", "size is '8 x 8'"),
        (GENERATIONS, {"prompt": "x", "seed": 1}, "seed", "seed is no field here; accepted:"),
        (
            GENERATIONS,
            {"prompt": "x", "tessera": {"loras": [{"name": "a", "wieght": 1}]}},
            "tessera.loras[0].wieght",
            "accepted: name, text_weight, weight",
        ),
        (
            GENERATIONS,
            {"prompt": "x", "output_compression": 50},
            "output_compression",
            "100 with output_format png",
        ),
        (GENERATIONS, {"prompt": "x", "partial_images": 1}, "partial_images", "0 without stream"),
        (
            GENERATIONS,
            {"prompt": "x", "stream": True, "response_format": "url"},
            "response_format",
            "b64_json with stream",
        ),
        (GENERATIONS, {"prompt": "x", "background": "transparent"}, "background", "opaque"),
        (EDITS, {"prompt": "x"}, "image", "image is missing"),
        (EDITS, edited(images=[{"image_url": url_of(IMAGE)}] * 2), "image", "is there 2 times"),
        (EDITS, edited(size="16x16"), "size", "auto, or the image's 8x4"),
        (EDITS, edited(mask={"image_url": url_of(WHITE)}), "mask", "has no transparency"),
        (
            EDITS,
            edited(mask={"image_url": url_of(HOLE.resize((16, 8)))}),
            "mask",
            "has 16 x 8 pixels; accepted: the image's 8 x 4",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) and " " not in value else "",
)
def test_bad_fields_are_named(
    http: TestClient, path: str, body: dict[str, Any], param: str, sentence: str
) -> None:
    answer = http.post(path, json=body)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, param)
    assert sentence in error["message"]
    assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("failure", "status", "code"),
    [
        (InvalidInput("STEPS", 0, "1 to 1000"), 400, "invalid_value"),
        (Cancelled("job j was cancelled"), 409, "job_cancelled"),
        (TimedOut("too late"), 503, "timeout"),
        (InternalError("internal error 1"), 500, "internal_error"),
    ],
    ids=["input", "cancelled", "timeout", "internal"],
)
def test_errors_of_the_server(
    http: TestClient, transport: AsyncFakeTransport, failure: Exception, status: int, code: str
) -> None:
    transport.inner.failures = [failure]
    answer = http.post(GENERATIONS, json={"prompt": "x"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)


def test_other_bodies_and_pages(http: TestClient) -> None:
    answer = http.post(GENERATIONS, content=b"prompt=x", headers={"content-type": "text/plain"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (415, "unsupported_media_type")
    answer = http.post(GENERATIONS, content=b"{" + b" " * 200_000)
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "body_too_large")
    mine = {"origin": "https://mine.example"}
    allowed = http.get("/v1/models", headers=mine)
    assert allowed.headers["access-control-allow-origin"] == "https://mine.example"
    stream = http.post(GENERATIONS, json={"prompt": "x", "stream": True}, headers=mine)
    shown = stream.headers["access-control-expose-headers"].split(", ")
    assert {"x-tessera-jobs", "retry-after", "x-should-retry"} <= {*shown}
    assert "inference-header-content-length" in shown
    assert stream.headers["x-tessera-jobs"]
    other = http.get("/v1/models", headers={"origin": "https://other.example"})
    assert "access-control-allow-origin" not in other.headers
    assert "cdn" not in http.get("/docs").text

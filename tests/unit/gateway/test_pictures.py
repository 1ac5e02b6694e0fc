"""Pictures in and out."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image

from tessera_gateway.errors import ApiError
from tessera_gateway.pictures import Format, decode, decode_url, encode

PIXELS = 10_000


def drawn() -> Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (24, 16, 3), np.uint8)
    return Image.fromarray(values)


@pytest.mark.parametrize("form", Format)
def test_a_picture_comes_back(form: Format) -> None:
    file = encode(drawn(), form)
    picture = decode(file, "image", PIXELS)
    difference = np.asarray(picture, int) - np.asarray(drawn(), int)
    assert np.abs(difference).max() <= (60 if form is Format.JPEG else 0)
    assert decode_url(base64.b64encode(file).decode(), "image", PIXELS).size == (16, 24)


def test_less_compression_quality_is_smaller() -> None:
    for form in (Format.JPEG, Format.WEBP):
        assert len(encode(drawn(), form, 20)) < len(encode(drawn(), form, 90))
        assert encode(drawn(), form, 0)


def test_a_picture_is_turned_the_right_way_up() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    sink = io.BytesIO()
    drawn().save(sink, "JPEG", exif=exif)
    assert decode(sink.getvalue(), "image", PIXELS).size == (24, 16)


def png(picture: Image.Image, **settings: object) -> bytes:
    sink = io.BytesIO()
    picture.save(sink, "PNG", **settings)
    return sink.getvalue()


def test_sixteen_bits_become_eight() -> None:
    wide = np.linspace(0, 65535, 256).astype(np.uint16)[None]
    picture = decode(png(Image.fromarray(wide)), "image", PIXELS)
    assert picture.mode == "L"
    assert np.asarray(picture)[0].tolist() == list(range(256))


@pytest.mark.parametrize(
    ("file", "mode"),
    [
        (png(Image.new("1", (4, 4), 1)), "L"),
        (png(Image.new("L", (4, 4), 255)), "L"),
        (png(Image.new("LA", (4, 4), (255, 0))), "RGBA"),
        (png(Image.new("L", (4, 4), 255), transparency=255), "RGBA"),
        (png(Image.new("RGB", (4, 4), "white").quantize()), "RGB"),
        (png(Image.new("RGB", (4, 4), "white").quantize(), transparency=0), "RGBA"),
        (png(Image.new("RGBA", (4, 4), (255, 255, 255, 0))), "RGBA"),
    ],
    ids=["1", "L", "LA", "L transparent", "P", "P transparent", "RGBA"],
)
def test_modes_become_few(file: bytes, mode: str) -> None:
    picture = decode(file, "image", PIXELS)
    assert picture.mode == mode
    assert np.asarray(picture.convert("RGB")).min() == 255
    if mode == "RGBA":
        assert picture.getchannel("A").getextrema() == (0, 0)


def large(mode: str, side: int) -> bytes:
    sink = io.BytesIO()
    Image.new(mode, (side, side)).save(sink, "PNG")
    return sink.getvalue()


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"", "cannot be read as a picture"),
        (b"GIF89a" + bytes(20), "cannot be read as a picture"),
        (encode(drawn())[:200], "cannot be read as a picture"),
        (large("L", 101), "101 x 101 pixels; accepted: up to 10,000 pixels"),
        (large("1", 14_000), "far too many pixels"),
    ],
    ids=["empty", "another format", "cut", "large", "bomb"],
)
def test_what_is_no_picture_is_refused(data: bytes, sentence: str) -> None:
    with pytest.raises(ApiError) as raised:
        decode(data, "mask", PIXELS)
    assert str(raised.value).startswith("mask ")
    assert sentence in str(raised.value)
    assert (raised.value.status, raised.value.content["param"]) == (400, "mask")


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("https://example.com/a.png", "is no data URL"),
        ("file:///etc/passwd", "is no data URL"),
        ("data:image/png,abc", "is no data URL"),
        ("data:image/png;base64,a", "is no base64"),
        ("data:image/png;base64,%%%%", "is no base64"),
        ("äöü", "is no base64"),
    ],
    ids=["http", "file", "plain", "length", "characters", "letters"],
)
def test_what_is_no_data_url_is_refused(url: str, sentence: str) -> None:
    with pytest.raises(ApiError, match=sentence):
        decode_url(url, "image", PIXELS)

"""Pictures of any size and any usual form: what is sent, and what comes back."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tessera.types import Array
from tessera_client import Client, Control
from tessera_client.fitting import frame_of
from tessera_client.pictures import picture_of, rgb_of
from tests.fakes.transport import FakeTransport

RNG = np.random.default_rng(3)


def noise(height: int, width: int) -> Array:
    return RNG.integers(0, 256, (height, width, 3), np.uint8)


class Inverting(FakeTransport):
    """Draws the negative of what it is sent, inside the mask and outside."""

    def infer(self, call: Any, timeout: float) -> dict[str, Array]:
        outputs = super().infer(call, timeout)
        return outputs | ({"IMAGE": 255 - outputs["IMAGE"]} if call.model == "edit" else {})


class Limits:
    min_size, max_size = 16, 64


@pytest.mark.parametrize(
    ("size", "resize"),
    [((90, 130), "crop"), ((90, 130), "scale")],
    ids=["crop", "scale"],
)
def test_pixels_outside_the_mask_stay(size: tuple[int, int], resize: str | None) -> None:
    image, transport = noise(*size), Inverting()
    mask = np.zeros(size, bool)
    mask[2:5, 1:4] = True
    control = Control("edges", image)
    with Client(transport=transport) as client:
        result = client.edit(image, mask, "a", resize=resize, controls=[control])
    drawn = np.asarray(result.image)
    assert drawn.shape == image.shape
    assert (drawn[~mask] == image[~mask]).all()
    assert (drawn[mask] != image[mask]).any()
    (sent,) = transport.sent("edit")
    height, width = sent["MASK"].shape[1:]
    assert max(height, width) <= 64
    assert sent["IMAGE"].shape == sent["CONTROL_IMAGES"][0].shape == (1, height, width, 3)
    assert (sent["IMAGE"][0] == sent["CONTROL_IMAGES"][0, 0]).all()


@pytest.mark.parametrize(("feather", "width"), [(None, 8), (1, 2), (3, 6), (4, 8), (128, 8)])
def test_a_scaled_edit_fades_over_no_more_than_the_feather(feather: int | None, width: int) -> None:
    """The drawing comes with its own fade, of drawn pixels, each of which covers two."""
    image = np.zeros((96, 128, 3), np.uint8)
    with Client(transport=Inverting()) as client:
        options: dict[str, Any] = {"resize": "scale", "mask_feather": feather}
        result = client.edit(image, (20, 20, 60, 50), "a", **options)
    row = np.asarray(result.image)[45, 20:50, 0]
    assert list(row[:width]) == [round(255 * (i + 1) / width) for i in range(width)]
    assert (row[width:] == 255).all()


@pytest.mark.parametrize("resize", [None, "pad", "crop", "scale"])
def test_what_the_server_can_draw_is_sent_as_it_is(resize: str | None) -> None:
    image, transport = noise(13, 50), Inverting()
    with Client(transport=transport) as client:
        result = client.edit(image, (1, 2, 3, 4), "a", resize=resize)
    (sent,) = transport.sent("edit")
    assert (sent["IMAGE"][0] == image).all()
    assert (np.asarray(result.image) == 255 - image).all()


def test_what_is_too_large_is_said() -> None:
    with Client(transport=FakeTransport()) as client:
        with pytest.raises(ValueError, match="the mask is 100 pixels long, and resize is 'crop'"):
            client.edit(noise(90, 130), (0, 0, 100, 8), "a", resize="crop")
        with pytest.raises(ValueError, match="resize is 'magic'; accepted: pad, crop, scale"):
            client.edit(noise(8, 8), (0, 0, 8, 8), "a", resize="magic")
        with pytest.raises(ValueError, match="mask has 8 x 8 pixels; accepted: the image's 16 x 8"):
            client.edit(noise(8, 16), np.ones((8, 8), bool), "a")


def test_a_small_mask_is_not_lost_when_scaled() -> None:
    mask = np.zeros((640, 640), np.uint8)
    mask[333, 444] = 255
    frame = frame_of(mask, "scale", Limits())
    assert frame.scaled == (64, 64)
    assert frame.masked(mask).sum() >= 255


@pytest.mark.parametrize(("size", "resize"), [((90, 130), "crop"), ((90, 130), "scale")])
def test_strengths_of_a_soft_mask_are_sent(size: tuple[int, int], resize: str) -> None:
    image, mask, transport = noise(*size), np.zeros(size, np.uint8), Inverting()
    mask[4:12, 2:10] = 100
    with Client(transport=transport) as client:
        result = client.edit(image, mask, "a", resize=resize, mask_kind="soft")
    (sent,) = transport.sent("edit")
    assert sent["MASK"].max() == 100
    assert sent["MASK_KIND"] == b"soft"
    drawn = np.asarray(result.image)
    assert (drawn[mask == 0] == image[mask == 0]).all()
    assert (drawn[5:11, 3:9] != image[5:11, 3:9]).any()


def test_a_control_of_another_size_needs_a_resize() -> None:
    image, small = noise(16, 16), noise(8, 24)
    with Client(transport=FakeTransport()) as client:
        both = [Control("edges", image), Control("edges", small)]
        with pytest.raises(
            ValueError, match=r"controls\[1\].image has 24 x 8 pixels; accepted: 16"
        ):
            client.edit(image, (0, 0, 8, 8), "a", controls=both)
    for how in ("stretch", "fit", "fill"):
        transport = FakeTransport()
        with Client(transport=transport) as client:
            both = [Control("edges", image), Control("edges", small, resize=how)]
            client.edit(image, (0, 0, 8, 8), "a", controls=both)
        assert transport.sent("edit")[0]["CONTROL_IMAGES"].shape == (1, 2, 16, 16, 3)


COLOURS = noise(6, 4)


def stored(picture: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    sink = io.BytesIO()
    picture.save(sink, form, **options)
    return sink.getvalue()


def test_every_way_to_have_a_picture(tmp_path: Path) -> None:
    picture = Image.fromarray(COLOURS)
    (tmp_path / "p.png").write_bytes(stored(picture))
    ways: list[Any] = [picture, COLOURS, tmp_path / "p.png", str(tmp_path / "p.png")]
    for way in [*ways, stored(picture), COLOURS.astype(np.uint16) * 257]:
        assert (rgb_of("image", way) == COLOURS).all()


def test_a_camera_held_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = np.rot90(COLOURS)  # 6: to be shown turned to the right
    file = stored(Image.fromarray(np.ascontiguousarray(turned)), exif=exif)
    assert (rgb_of("image", file) == COLOURS).all()


@pytest.mark.parametrize("mode", ["L", "1", "P", "LA", "RGBA", "CMYK", "I;16"])
def test_modes(mode: str) -> None:
    grey = np.asarray([[0, 255], [255, 0]], np.uint8)
    picture = Image.fromarray(grey)
    if mode == "I;16":
        picture = Image.fromarray(grey.astype(np.uint16) * 257)
    elif mode == "CMYK":
        picture = picture.convert("RGB").convert("CMYK")
    else:
        picture = picture.convert(mode)
    found = rgb_of("image", picture)
    assert (found == grey[..., None]).all()


def test_a_palette_may_be_transparent() -> None:
    picture = Image.fromarray(np.asarray([[0, 1]], np.uint8), "L").convert("P")
    picture.info["transparency"] = 0
    found = picture_of("image", picture)
    assert found.mode == "RGBA"
    assert np.asarray(found)[..., 3].min() == 0


@pytest.mark.parametrize(
    ("picture", "kind", "sentence"),
    [
        (None, TypeError, "image is None; accepted: a PIL image"),
        ("gone.png", ValueError, "image is 'gone.png', which does not exist"),
        (b"text", ValueError, "image is 4 bytes, which is no picture"),
        (np.zeros((2, 2, 3)), TypeError, "image is an array .* of float64"),
        (Image.new("F", (2, 2), 0.5), ValueError, "image has the values 0.5 to 0.5 in mode F"),
    ],
    ids=["none", "gone", "text", "floats", "mode F"],
)
def test_what_is_no_picture(picture: Any, kind: type[Exception], sentence: str) -> None:
    with pytest.raises(kind, match=sentence):
        picture_of("image", picture)

"""What `edit` sends."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tessera_client import AsyncClient, Client, Region
from tests.fakes.transport import AsyncFakeTransport, FakeTransport


class TestEdit:
    """What `edit` sends."""

    IMAGE = np.arange(8 * 16 * 3, dtype=np.uint8).reshape(8, 16, 3)

    def sent(self, image: Any, mask: Any, **options: Any) -> dict[str, Any]:
        transport = FakeTransport()
        Client(transport=transport).edit(image, mask, "a", **options)
        (sent,) = transport.sent("edit")
        return sent

    def test_an_image_and_a_mask(self) -> None:
        mask = np.eye(8, 16, dtype=np.uint8) * 200
        sent = self.sent(self.IMAGE, mask, strength=0.5, mode="dense", quality="best", seed=0)
        assert (sent["IMAGE"] == self.IMAGE[None]).all()
        assert (sent["MASK"] == mask[None]).all()
        assert (sent["STRENGTH"], sent["MODE"], sent["SEED"]) == (0.5, b"dense", 0)
        assert sent["EDIT_QUALITY"] == b"best"
        assert sent["STRENGTH"].dtype == np.float32
        again = self.sent(Image.fromarray(self.IMAGE), Image.fromarray(mask))
        assert (again["MASK"] == mask[None]).all()
        assert (again["IMAGE"] == self.IMAGE[None]).all()
        assert not {"STRENGTH", "EDIT_QUALITY"} & again.keys()

    def test_a_boolean_mask_a_rectangle_and_transparency(self) -> None:
        wanted = np.zeros((8, 16), np.uint8)
        wanted[2:5, 3:10] = 255
        picture = Image.fromarray(np.dstack([self.IMAGE, 255 - wanted]))
        for image, mask in (
            (self.IMAGE, wanted > 0),
            (self.IMAGE, (3, 2, 7, 3)),
            (picture, (3, 2, 7, 3)),
            (picture, None),
            (np.asarray(picture), None),
        ):
            assert (self.sent(image, mask)["MASK"] == wanted[None]).all()

    def test_a_mask_with_transparent_parts_could_mean_either(self) -> None:
        painted = np.zeros((8, 16, 4), np.uint8)
        painted[2:5, 3:10, 3] = 255
        mask = Image.fromarray(painted)
        with pytest.raises(ValueError, match="the mask has transparent parts; accepted: a mask in"):
            self.sent(self.IMAGE, mask)
        sent = self.sent(self.IMAGE, mask.getchannel("A"))["MASK"]
        assert (sent == painted[None, ..., 3]).all()
        painted[..., 3] = 255
        assert not self.sent(self.IMAGE, Image.fromarray(painted))["MASK"].any()

    @pytest.mark.parametrize(
        ("image", "mask", "sentence"),
        [
            (IMAGE, None, "no mask, and the image has no transparent part"),
            (IMAGE, (9, 0, 8, 8), "9,0,8,8 is not within the image of 16 x 8 pixels"),
            (IMAGE, (0, 0, 0, 8), "is not within"),
            (None, (0, 0, 8, 8), "a rectangle as mask needs the image"),
            (IMAGE, np.zeros((8, 16, 5), np.uint8), r"mask is an array \(8, 16, 5\) of uint8"),
            (IMAGE.astype(float), IMAGE[..., 0], "image is an array .* of float64; accepted"),
        ],
        ids=["none", "outside", "empty", "no image", "five channels", "floats"],
    )
    def test_what_cannot_be_sent(self, image: Any, mask: Any, sentence: str) -> None:
        with pytest.raises((TypeError, ValueError), match=sentence):
            self.sent(image, mask)

    def test_without_a_mask_all_of_an_image_or_the_room_around_it(self) -> None:
        sent = self.sent(self.IMAGE, None, strength=0.5)
        assert (sent["MASK"] == 255).all()
        sent = self.sent(self.IMAGE, None, strength=0.5, extend=(0, 8, 16, 0))
        assert not sent["MASK"].any()
        assert sent["EXTEND"].tolist() == [[0, 8, 16, 0]]
        assert sent["EXTEND"].dtype == np.int32

    @pytest.mark.parametrize("alpha", [255, 128])
    def test_an_image_that_is_hardly_transparent_is_edited_as_a_whole(self, alpha: int) -> None:
        opacity = np.full((8, 16, 1), 255, np.uint8)
        opacity[3, 5] = alpha
        image = np.dstack([self.IMAGE, opacity])
        assert (self.sent(image, None, strength=0.5)["MASK"] == 255).all()
        assert not self.sent(image, None, strength=0.5, extend=(0, 8, 16, 0))["MASK"].any()
        with pytest.raises(ValueError, match="no transparent part"):
            self.sent(image, None)

    def test_a_transparent_part_is_edited_whatever_else_is_asked_for(self) -> None:
        opacity = np.full((8, 16, 1), 255, np.uint8)
        opacity[3, 5], opacity[4, 5] = 127, 200
        image = np.dstack([self.IMAGE, opacity])
        wanted = 255 - opacity[None, ..., 0]
        for options in ({}, {"strength": 0.5}, {"extend": (0, 8, 16, 0)}):
            assert (self.sent(image, None, **options)["MASK"] == wanted).all()
        opacity[3, 5] = 254
        image = np.dstack([self.IMAGE, opacity])
        region = {"mask": None, "prompt": "b"}
        soft = self.sent(image, None, strength=0.5, mask_kind="soft", regions=[region])
        assert (soft["MASK"] == 255 - opacity[None, ..., 0]).all()
        assert (soft["REGION_MASKS"][0] == soft["MASK"]).all()

    @pytest.mark.parametrize(
        "options",
        [{"strength": 0.5}, {"extend": (0, 8, 16, 0)}],
        ids=lambda given: next(iter(given)),
    )
    def test_a_template_without_a_mask_is_sent_without_one(self, options: dict[str, Any]) -> None:
        transport = FakeTransport()
        with Client(transport=transport) as client:
            result = client.edit(None, None, "a", template="t", **options)
            with pytest.raises(ValueError, match="there is no mask"):
                client.edit(None, None, "a", template="t")
        (sent,) = transport.sent("edit")
        assert sent["TEMPLATE"] == b"t"
        assert next(iter(options)).upper() in sent
        assert not {"MASK", "IMAGE"} & sent.keys()
        assert "width" not in result.settings, "the size is the template's"

    def test_the_server_fits_what_it_crops_or_extends(self) -> None:
        image = np.zeros((130, 333, 3), np.uint8)
        sent = self.sent(image, (3, 2, 7, 3), padding_mask_crop=32, width=64, height=64)
        assert sent["IMAGE"].shape == (1, 130, 333, 3)
        assert (sent["PADDING_MASK_CROP"], sent["WIDTH"], sent["HEIGHT"]) == (32, 64, 64)
        with pytest.raises(ValueError, match="resize is 'crop'; accepted: nothing with padding_ma"):
            self.sent(image, (3, 2, 7, 3), padding_mask_crop=32, resize="crop")

    @pytest.mark.parametrize(
        ("extend", "sentence"),
        [
            ((1, 2, 3), r"extend is \[1, 2, 3\]; accepted: a list of 4 integers"),
            ("0,0,8,8", "extend is '0,0,8,8'; accepted: a list of 4 integers"),
            ((0, 0, 8, 1.5), r"extend\[3\] is 1.5; accepted: an integer"),
        ],
    )
    def test_room_is_four_integers(self, extend: Any, sentence: str) -> None:
        with pytest.raises((TypeError, ValueError), match=sentence):
            self.sent(self.IMAGE, None, extend=extend)

    def test_regions_have_a_mask_and_a_prompt_each(self) -> None:
        second = np.zeros((8, 16), bool)
        second[:, 12:] = True
        regions = [Region((0, 0, 4, 4), "b"), {"mask": second, "prompt": "c"}]
        sent = self.sent(self.IMAGE, (4, 0, 4, 8), regions=regions)
        assert sent["REGION_PROMPTS"].tolist() == [[b"b", b"c"]]
        assert sent["REGION_MASKS"].shape == (1, 2, 8, 16)
        assert (sent["REGION_MASKS"][0, 1] == 255 * second).all()

    @pytest.mark.parametrize(
        ("regions", "sentence"),
        [
            ("b", "regions is 'b'; accepted: a list of Region"),
            ([("m", "b")], r"regions\[0\] is \('m', 'b'\); accepted: a list of Region"),
            ([Region((0, 0, 4, 4), 7)], r"regions\[0\].prompt is 7; accepted: a str"),  # type: ignore[arg-type]
            ([Region(np.ones((9, 9), bool), "b")], "mask has 9 x 9 pixels; accepted: the image's"),
        ],
        ids=["text", "tuple", "prompt", "size"],
    )
    def test_regions_that_are_none(self, regions: Any, sentence: str) -> None:
        with pytest.raises((TypeError, ValueError), match=sentence):
            self.sent(self.IMAGE, (0, 0, 4, 4), regions=regions)

    def test_the_async_client_sends_the_same(self) -> None:
        async def session() -> None:
            transport = AsyncFakeTransport()
            async with AsyncClient(transport=transport) as opened:
                await opened.edit(self.IMAGE, (0, 0, 8, 8), "a", mode="dense")
            assert transport.inner.sent("edit")[0]["MODE"] == b"dense"

        asyncio.run(session())

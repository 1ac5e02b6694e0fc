"""What `edit` sends."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tessera_client import AsyncClient, Client
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
        sent = self.sent(self.IMAGE, mask, strength=0.5, mode="dense", seed=0)
        assert (sent["IMAGE"] == self.IMAGE[None]).all()
        assert (sent["MASK"] == mask[None]).all()
        assert (sent["STRENGTH"], sent["MODE"], sent["SEED"]) == (0.5, b"dense", 0)
        assert sent["STRENGTH"].dtype == np.float32
        again = self.sent(Image.fromarray(self.IMAGE), Image.fromarray(mask))
        assert (again["MASK"] == mask[None]).all()
        assert (again["IMAGE"] == self.IMAGE[None]).all()
        assert "STRENGTH" not in again

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

    @pytest.mark.parametrize(
        ("image", "mask", "sentence"),
        [
            (IMAGE, None, "no mask, and the image has no transparent part"),
            (IMAGE, (9, 0, 8, 8), "9,0,8,8 is not within the image of 16 x 8 pixels"),
            (IMAGE, (0, 0, 0, 8), "is not within"),
            (None, (0, 0, 8, 8), "a rectangle as mask needs the image"),
            (IMAGE, IMAGE, r"array \(h, w\) of uint8 or bool, not \(8, 16, 3\) of uint8"),
            (IMAGE.astype(float), IMAGE[..., 0], "an image is an array .* of float64"),
        ],
        ids=["none", "outside", "empty", "no image", "three channels", "floats"],
    )
    def test_what_cannot_be_sent(self, image: Any, mask: Any, sentence: str) -> None:
        with pytest.raises((TypeError, ValueError), match=sentence):
            self.sent(image, mask)

    def test_the_async_client_sends_the_same(self) -> None:
        async def session() -> None:
            transport = AsyncFakeTransport()
            async with AsyncClient(transport=transport) as opened:
                await opened.edit(self.IMAGE, (0, 0, 8, 8), "a", mode="dense")
            assert transport.inner.sent("edit")[0]["MODE"] == b"dense"

        asyncio.run(session())

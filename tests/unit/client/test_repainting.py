"""Boxes of a picture that are drawn anew."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest

from tessera.types import Array
from tessera_client import AsyncClient, Client
from tests.fakes.transport import AsyncFakeTransport, FakeTransport

IMAGE = np.random.default_rng(3).integers(0, 256, (60, 90, 3), np.uint8)
BOXES: list[Any] = [(2, 3, 20, 10), np.array([15, 8, 30, 30])]


class Inverting(FakeTransport):
    """Draws the negative of what it is sent, as a server that keeps no promise outside the mask."""

    def infer(self, call: Any, timeout: float) -> dict[str, Array]:
        outputs = super().infer(call, timeout)
        return outputs | ({"IMAGE": 255 - outputs["IMAGE"]} if call.model == "edit" else {})


def test_every_box_is_an_edit_of_its_own() -> None:
    transport = Inverting()
    with Client(transport=transport) as client:
        done = client.repaint(IMAGE, BOXES, ["a", "b"], seed=7, steps=4, job_id="j")
    sent = sorted(transport.sent("edit"), key=lambda each: str(each["JOB_ID"]))
    for name, values in {
        "PROMPT": [b"a", b"b"],
        "SEED": [7, 8],
        "JOB_ID": [b"j-1", b"j-2"],
        "PADDING_MASK_CROP": [32, 32],
    }.items():
        assert [each[name] for each in sent] == values
    assert [int((each["MASK"] > 0).sum()) for each in sent] == [200, 900]
    inside = np.zeros((60, 90), bool)
    inside[3:13, 2:22] = inside[8:38, 15:45] = True
    drawn = np.asarray(done.image)
    assert (drawn[inside] == 255 - IMAGE[inside]).all()
    assert (drawn[~inside] == IMAGE[~inside]).all()
    assert len(done.results) == 2


def test_a_picture_in_which_nothing_was_found_stays() -> None:
    transport = FakeTransport()
    with Client(transport=transport) as client:
        done = client.repaint(IMAGE, [], "a")
    assert (np.asarray(done.image) == IMAGE).all()
    assert done.results == ()
    assert transport.sent("edit") == []


def test_the_async_client_repaints_the_same() -> None:
    async def session() -> Any:
        transport = AsyncFakeTransport()
        transport.inner = Inverting()
        async with AsyncClient(transport=transport) as client:
            return await client.repaint(IMAGE, BOXES, "a", padding_mask_crop=4)

    with Client(transport=Inverting()) as client:
        expected = client.repaint(IMAGE, BOXES, "a", padding_mask_crop=4)
    assert asyncio.run(session()).image.tobytes() == expected.image.tobytes()


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("extend", (0, 0, 8, 8)),
        ("regions", [{"mask": (0, 0, 8, 8), "prompt": "b"}]),
        ("resize", "crop"),
        ("template", "t"),
    ],
)
def test_options_that_do_not_go_with_boxes(option: str, value: Any) -> None:
    transport = FakeTransport()
    with (
        Client(transport=transport) as client,
        pytest.raises(ValueError, match=f"{option} is .*; accepted: nothing in repaint"),
    ):
        client.repaint(IMAGE, BOXES, "a", **{option: value})
    assert not transport.calls


@pytest.mark.parametrize(
    ("boxes", "prompt", "sentence"),
    [
        ("all", "a", "boxes is 'all'; accepted: a list of x, y, width, height"),
        ([5], "a", r"boxes\[0\] is 5; accepted: a list of x, y, width, height"),
        ([(80, 0, 20, 8)], "a", "the rectangle 80,0,20,8 is not within the image of 90 x 60"),
        (BOXES, ["a"], "prompt has 1 elements; accepted: one text, or one for each of the 2"),
    ],
    ids=["text", "number", "outside", "prompts"],
)
def test_what_is_no_box(boxes: Any, prompt: Any, sentence: str) -> None:
    with (
        Client(transport=FakeTransport()) as client,
        pytest.raises((TypeError, ValueError), match=sentence),
    ):
        client.repaint(IMAGE, boxes, prompt)

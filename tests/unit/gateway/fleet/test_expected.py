"""What a router expects of a request is what a worker's own code makes of it."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tessera.codec.masks import active_latents, latent_strengths
from tessera.contract import EDIT_QUALITIES, SCHEDULERS
from tessera.edits.quality import BUILT_IN, WARM_UP
from tessera.edits.state import widened
from tessera.errors import InvalidInput
from tessera.requests.edit import EditChoice
from tessera.requests.framing import framed, needs_framing
from tessera.requests.request import Request, read_request
from tessera.templates.keys import Nearness
from tessera_gateway.fleet import expected
from tessera_gateway.fleet.load import Defaults, Load
from tessera_gateway.fleet.masks import LARGEST, active
from tessera_gateway.fleet.peek import Peek, peek
from tessera_gateway.fleet.score import Weights
from tessera_gateway.fleet.wire import Tensor
from tests.samples.requests import MANIFEST

Inputs = dict[str, np.ndarray[Any, Any]]
LIMITS, PIXELS = MANIFEST.limits, MANIFEST.latents.pixels
LOAD = msgspec.convert(
    {
        "defaults": {
            "steps": 20,
            "width": 128,
            "height": 128,
            "guidance": 4.0,
            "scheduler": "euler",
            "pixels": PIXELS,
            "smallest": LIMITS.min_size,
            "largest": LIMITS.max_size,
            "quality": "balanced",
        },
        "policies": BUILT_IN.table,
    },
    Load,
)
TEXTS = ("SCHEDULER", "MASK_KIND", "EDIT_QUALITY", "MODE")
FORMS: dict[str, Any] = {"GUIDANCE": np.float32, "STRENGTH": np.float32}


def blob(draw: st.DrawFn, height: int, width: int) -> np.ndarray[Any, Any]:
    """A mask (1, h, w) of a few boxes of any values."""
    mask = np.zeros((1, height, width), np.uint8)
    for _ in range(draw(st.integers(1, 3))):
        top, left = draw(st.integers(0, height - 8)), draw(st.integers(0, width - 8))
        bottom, right = draw(st.integers(top + 8, height)), draw(st.integers(left + 8, width))
        mask[0, top:bottom, left:right] = draw(st.sampled_from([60, 90, 128, 255]))
    return mask


@st.composite
def edits(draw: st.DrawFn) -> Inputs:
    """An edit that brings its image; some are not accepted."""
    height, width = draw(st.integers(64, 120)), draw(st.integers(64, 120))
    rng = np.random.default_rng(draw(st.integers(0, 9)))
    optional: dict[str, Any] = {
        "MASK": blob(draw, height, width),
        "STEPS": draw(st.integers(1, 40)),
        "STRENGTH": draw(st.sampled_from([0.1, 0.35, 0.7, 0.95, 1.0])),
        "GUIDANCE": draw(st.sampled_from([0.0, 1.0, 5.0])),
        "SCHEDULER": draw(st.sampled_from(["euler", "heun", "pndm", "lcm"])),
        "MASK_KIND": draw(st.sampled_from(["hard", "soft"])),
        "EDIT_QUALITY": draw(st.sampled_from(EDIT_QUALITIES)).value,
        "MODE": draw(st.sampled_from(["auto", "sparse"])),
        "EXTEND": np.array([draw(st.lists(st.integers(0, 30), min_size=4, max_size=4))], np.int32),
        "PADDING_MASK_CROP": draw(st.integers(0, 24)),
        "REGION_MASKS": blob(draw, height, width)[None],
    }
    names = [name for name in optional if draw(st.booleans())]
    inputs: Inputs = {"PROMPT": np.array([[b"a circle"]], object)}
    inputs["IMAGE"] = rng.integers(0, 256, (1, height, width, 3), np.uint8)
    for name in names:
        value = optional[name]
        if name in TEXTS:
            inputs[name] = np.array([[value.encode()]], object)
        elif isinstance(value, np.ndarray):
            inputs[name] = value
        else:
            inputs[name] = np.array([[value]], FORMS.get(name, np.int32))
    if "REGION_MASKS" in inputs:
        inputs["REGION_PROMPTS"] = np.array([[b"a star"]], object)
    return inputs


def looked_at(inputs: Inputs) -> Peek:
    """A look at the inputs' bytes."""
    tensors = []
    for name, array in inputs.items():
        data = array.tobytes()
        if array.dtype == object:
            data = b"".join(len(t).to_bytes(4, "little") + t for t in array.reshape(-1))
        tensors.append(Tensor(name, array.shape, data))
    return peek("edit", tensors)


def worked_on(inputs: Inputs) -> tuple[Request, EditChoice]:
    """What a worker makes of it."""
    if needs_framing(inputs, LIMITS):
        framing = framed(inputs, MANIFEST, lambda _: np.zeros((0, 0, 3), np.uint8))
        kept = {name: a for name, a in inputs.items() if name not in framing.dropped}
        inputs = kept | framing.inputs
    request = read_request(inputs, MANIFEST)
    assert request.edit is not None
    return request, request.edit


def latents_of(edit: EditChoice, margin: int) -> int:
    """What a sparse step computes, as `encode` and `edits.steps` find it."""
    if edit.strengths is None:
        found = active_latents(edit.mask, PIXELS) > 0
    else:
        found = latent_strengths(edit.strengths, PIXELS) > 0
    return int(widened(torch.from_numpy(found)[None, None], margin).sum())


@settings(deadline=None, max_examples=200, derandomize=True)  # a crop is a guess
@given(edits())
def test_an_edit(inputs: Inputs) -> None:
    try:
        request, edit = worked_on(inputs)
    except InvalidInput:
        assume(False)
    asked = looked_at(inputs)
    size = expected.drawn(LOAD, asked)
    assert (size.width, size.height) == (request.width, request.height)
    rows = len(request.prompts) + (request.guidance > 1)
    assert expected.branches(LOAD, asked) == rows
    places = SCHEDULERS[request.scheduler].evaluations(request.steps, edit.first_step)
    assert expected.evaluations(LOAD, asked) == places
    count = SCHEDULERS[request.scheduler].count(request.steps)
    noisiest = math.ceil(WARM_UP * count)
    cropped = asked.padding is not None
    for nearness in (Nearness.OWN, Nearness.EMPTY):
        own = nearness == Nearness.OWN and not asked.regions
        ways = expected.ways(LOAD, asked, prompted=own, warm=Weights().warm)
        if not own and nearness == Nearness.OWN:
            continue
        if cropped and (asked.soft or not _same(asked, edit, nearness)):
            continue  # a soft mask that is scaled has a fringe, which is not followed here
        for way, policy in zip(
            ways, BUILT_IN.of(edit.quality, nearness, edit.mask_ratio), strict=True
        ):
            assert way.dense == sum(p < noisiest or policy.dense_at(p, count) for p in places)
            real = latents_of(edit, policy.margin)
            if cropped:
                assert way.active == pytest.approx(real, rel=0.5, abs=120)
            else:
                assert way.active == real
    if not cropped:
        assert asked.template == edit.template


def _same(asked: Peek, edit: EditChoice, nearness: Nearness) -> bool:
    """Whether the share of a crop, which is scaled in the worker, is looked up in the same row."""
    assert asked.edited is not None
    size = expected.drawn(LOAD, asked)
    rough = active(asked.edited, size, PIXELS, 0) * PIXELS**2 / (size.width * size.height)
    assert rough == pytest.approx(edit.mask_ratio, abs=0.3)
    found = (BUILT_IN.of(edit.quality, nearness, ratio) for ratio in (rough, edit.mask_ratio))
    return len(set(found)) == 1


def test_a_guidance_that_is_an_input_has_no_branch() -> None:
    embedded = msgspec.structs.replace(
        LOAD, defaults=msgspec.structs.replace(LOAD.defaults, embedded=True)
    )
    assert expected.branches(embedded, Peek("generate")) == 1


def test_recordings_of_each_prompt_or_of_none() -> None:
    edit = Peek("edit", mask=0.1)
    assert expected.texts(LOAD, edit) == 2
    assert expected.texts(LOAD, Peek("edit", mask=0.1, quality="fast")) == 1
    assert expected.texts(LOAD, Peek("edit", mask=0.1, guidance=1.0)) == 1
    assert expected.texts(LOAD, Peek("edit", mask=0.1, regions=2)) == 1


def test_a_worker_that_tells_no_policies() -> None:
    old = Load(defaults=Defaults(steps=10, width=64, height=64, scheduler="euler"))
    (way,) = expected.ways(old, Peek("edit", mask=0.25), prompted=True, warm=0.1)
    assert way == expected.Way(active=16, dense=1)


def test_a_picture_with_too_much_room_around_is_not_looked_at() -> None:
    """A few bytes would else make a router fill gigabytes."""
    image = Tensor("IMAGE", (1, 8, 8, 3), bytes(192))
    room = Tensor("EXTEND", (1, 4), np.array([8192] * 4, np.int32).tobytes())
    assert LARGEST < (2 * 8192) ** 2
    found = peek("edit", [image, room])
    assert (found.edited, found.mask, found.image) == (None, None, False)


def test_shapes_that_lie_make_nothing_large() -> None:
    far = 10**7
    image = Tensor("IMAGE", (1, far, far, 3), bytes(9))
    assert peek("edit", [image]).edited is None
    masks = [
        Tensor("MASK", (1, far, 1), bytes(far)),
        Tensor("REGION_MASKS", (1, 1, 1, 9), bytes(9)),
    ]
    assert peek("edit", masks).edited is None
    assert peek("edit", [Tensor("MASK", (1, -1, -1), bytes(9))]).edited is None
    assert peek("edit", [Tensor("REGION_PROMPTS", (1, -5), bytes(4))]).regions == 0

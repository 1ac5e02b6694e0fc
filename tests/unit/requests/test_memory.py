"""Requests that can never fit into memory, and what they hold while they wait."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable

import numpy as np
import pytest
import torch

from tessera.denoise.opening import example_inputs
from tessera.engines.bundle import Bundle
from tessera.errors import InvalidInput
from tessera.manifest import Graph
from tessera.requests.fields import Inputs
from tessera.requests.memory import Place, RequestMemory, held
from tessera.requests.request import Request, read_request
from tests.fakes.calls import edit_inputs
from tests.samples.bundles import Small
from tests.samples.requests import MANIFEST, inputs

LARGE = Place("UNet", 1 << 40, 10.0, 4)


def of_vae(available: int) -> RequestMemory:
    """256 x 256 pixels of 100 channels of 4 bytes: 26.2 MB."""
    return RequestMemory(LARGE, Place("VAE", available, 100, 4))


ROOMY, TIGHT = (of_vae(available) for available in (26_214_400, 26_214_399))


def test_a_picture_that_fits_exactly_is_taken() -> None:
    request = read_request(inputs(WIDTH=256, HEIGHT=256), MANIFEST)
    ROOMY.check(request)
    with pytest.raises(InvalidInput) as caught:
        TIGHT.check(request)
    assert str(caught.value) == (
        "WIDTH makes a picture of 256 x 256 pixels, which takes at least 0.0262 GB; "
        "accepted: what fits into 0.0262 GB of memory, where the VAE runs"
    )


def test_of_an_edit_the_image_is_named() -> None:
    request = read_request(edit_inputs(), MANIFEST)
    with pytest.raises(InvalidInput, match=r"^IMAGE makes a picture of 64 x 96 pixels"):
        of_vae(1000).check(request)


def controlled() -> tuple[Request, Inputs]:
    """A request for 256 x 256 pixels with one ControlNet, and its inputs."""
    graph = Graph("a.onnx", "config.json")
    graphs = {f"controlnet_edges{part}": graph for part in ("", "_hint")}
    manifest = dataclasses.replace(MANIFEST, graphs=graphs)
    given = inputs(WIDTH=256, HEIGHT=256, CONTROLS='[{"name": "edges"}]')
    given |= {"CONTROL_IMAGES": np.zeros((1, 1, 256, 256, 3), np.uint8)}
    return read_request(given, manifest), given


def test_images_of_controlnets_count() -> None:
    request, _ = controlled()
    of_vae(26_214_400 + 15 * 256 * 256).check(request)
    with pytest.raises(InvalidInput, match=r"^CONTROL_IMAGES is of 1 images for 256 x 256"):
        ROOMY.check(request)


def test_the_unet_needs_room_for_one_row_and_its_residuals() -> None:
    row = 256 * 256 * 10 * 4
    request = read_request(inputs(WIDTH=256, HEIGHT=256), MANIFEST)
    unet = dataclasses.replace(LARGE, available=row)
    dataclasses.replace(ROOMY, unet=unet).check(request)
    unet = dataclasses.replace(LARGE, available=row - 1)
    with pytest.raises(InvalidInput, match=r"^WIDTH makes .* of memory, where the UNet runs$"):
        dataclasses.replace(ROOMY, unet=unet).check(request)
    request, _ = controlled()
    needed = 2 * row + 15 * 256 * 256
    vae = dataclasses.replace(ROOMY.vae, available=1 << 40)
    RequestMemory(dataclasses.replace(LARGE, available=needed), vae).check(request)
    with pytest.raises(InvalidInput, match=r"^CONTROL_IMAGES .* where the UNet runs$"):
        RequestMemory(dataclasses.replace(LARGE, available=needed - 1), vae).check(request)


@pytest.mark.parametrize("variant", ["sd15", "sdxl"])
def test_what_is_counted_of_the_unet_is_what_its_halves_hand_on(
    small: Callable[[str], Small], variant: str
) -> None:
    bundle, side = Bundle(small(variant).bundle, threads=1), 8
    path = bundle.file(bundle.manifest.graphs["unet_encoder"].config)
    sample = example_inputs(json.loads(path.read_text()), (side, side), rows=1)
    given = {"sample": sample[0], "timestep": sample[1], **sample[2]}
    outputs = bundle.engine("unet_encoder").run(given)
    skips = [tensor for name, tensor in outputs.items() if name.startswith("skip_")]
    assert sum(map(torch.Tensor.numel, skips)) == bundle.skip_numbers() * side**2


def test_a_request_holds_its_inputs_and_what_is_made_of_them() -> None:
    request, given = controlled()
    pixels = 256 * 256
    sent = [array for array in given.values() if array.dtype != object]
    assert held(request, sent) >= 3 * pixels + 2 * 3 * pixels  # image, prepared image, answer
    edit = edit_inputs()
    brought = edit["IMAGE"].nbytes + edit["MASK"].nbytes
    pictures = held(read_request(edit, MANIFEST), [edit["IMAGE"], edit["MASK"]]) - brought
    assert pictures == 2 * 3 * 64 * 96

"""Every variant, in small and with random weights: from checkpoint to the pictures that Triton
serves, against diffusers' pipelines on the same checkpoint. One server for each variant.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from tessera.denoise.canvas import TEMPLATE_SEED
from tessera.variants import VARIANTS
from tessera_client import Client, Control
from tests.samples.bundles import IN_HALF, Small
from tests.samples.images import island, largest, noise_blocks, ramp
from tests.samples.inpainting import by_diffusers
from tests.samples.references import PROMPT, References
from tests.samples.servers import ended_whole

OPTIONS: dict[str, dict[str, Any]] = {
    "nothing said": {},
    "negative prompt": {"negative_prompt": "a red circle", "seed": 3},
    "empty negative prompt": {"negative_prompt": ""},
    "no guidance": {"guidance": 1.0, "scheduler": "ddim"},
    "another size": {"width": 96, "height": 200, "scheduler": "euler"},
}
CONTROLS: dict[str, list[Control]] = {
    "one": [Control("edges", image=noise_blocks(1))],
    "weaker": [Control("edges", image=noise_blocks(2), scale=0.4)],
    "window": [Control("edges", image=noise_blocks(3), start=0.25, end=0.75)],
    "guessing": [Control("edges", image=noise_blocks(6), guess_mode=True)],
    "two": [
        Control("edges", image=noise_blocks(4), scale=0.6, end=0.5),
        Control("edges", image=noise_blocks(5), scale=-0.3, start=0.2),
    ],
}


@dataclass(frozen=True)
class Served:
    """A variant's server, and diffusers on the same weights."""

    client: Client
    references: References
    plain: Any
    """The picture without ControlNets."""


@pytest.fixture(scope="module", params=[*VARIANTS, *IN_HALF])
def served(
    request: pytest.FixtureRequest,
    small: Callable[[str], Small],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Served]:
    made = small(request.param)
    log = tmp_path_factory.mktemp(request.param) / "log"
    with (
        ended_whole(made.bundle, log, "--threads=2") as server,
        Client(server.http, timeout=300) as client,
    ):
        plain = np.asarray(client.generate(PROMPT, seed=7).image, np.int16)
        yield Served(client, References(made), plain)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_pictures_equal_diffusers(served: Served, options: dict[str, Any]) -> None:
    wanted = {"seed": 7, **options}
    expected = served.references.picture(**wanted)
    assert expected.std() > 5, "a flat picture would prove nothing"
    assert_near(served.client.generate(PROMPT, **wanted).image, expected)


@pytest.mark.parametrize("controls", CONTROLS.values(), ids=CONTROLS.keys())
def test_pictures_with_controlnets_equal_diffusers(served: Served, controls: list[Control]) -> None:
    result = served.client.generate(PROMPT, seed=7, controls=controls)
    assert_near(result.image, served.references.controlled(controls, seed=7))
    change = np.abs(np.asarray(result.image, np.int16) - served.plain)
    assert change.max() > 10, "the control changed nothing"
    assert [c["name"] for c in result.info.controls] == [c.name for c in controls]


def test_pictures_with_a_union_equal_diffusers(served: Served) -> None:
    if "all" not in served.client.bundle().controlnets:
        pytest.skip("only SDXL has a ControlNet-Union")
    assert served.client.bundle().control_modes["all"][0] == "openpose"
    picture = noise_blocks(7)
    pictures = []
    for name, mode in (("canny", 3), ("tile", 6)):
        control = Control("all", image=picture, scale=0.8, mode=name)
        result = served.client.generate(PROMPT, seed=7, controls=[control])
        assert result.info.controls[0]["mode"] == mode
        assert_near(result.image, served.references.united(control, mode, seed=7))
        pictures.append(np.asarray(result.image, np.int16))
    assert np.abs(pictures[0] - pictures[1]).max() > 10, "the mode changed nothing"


@pytest.mark.parametrize("strength", [1.0, 0.7])
def test_dense_edits_equal_diffusers_inpainting(served: Served, strength: float) -> None:
    """At a size that is no square."""
    image, mask = ramp(120, 96), island(120, 96)
    wanted: dict[str, Any] = {"scheduler": "euler", "strength": strength}
    options: dict[str, Any] = {"seed": TEMPLATE_SEED, "steps": 6, "guidance": 3.0, "mode": "dense"}
    result = served.client.edit(image, mask, PROMPT, **options, **wanted)
    pipe = served.references.inpainting()
    expected = by_diffusers(pipe, image, mask, num_inference_steps=6, guidance_scale=3.0, **wanted)
    assert (expected != image).mean() > 0.1
    assert largest(result, expected) <= 2


def test_sparse_edits_of_everything_are_dense_ones(served: Served) -> None:
    """With a recording, of which nothing is left to read where every token is computed."""
    image, mask = ramp(120, 96), np.full((96, 120), 255, np.uint8)
    options: dict[str, Any] = {"seed": 3, "steps": 4, "guidance": 3.0, "scheduler": "euler"}
    dense, sparse = (
        served.client.edit(image, mask, PROMPT, mode=mode, **options)
        for mode in ("dense", "sparse")
    )
    assert (dense.info.mode, sparse.info.mode) == ("dense", "sparse")
    assert_near(sparse.image, np.asarray(dense.image, np.int16))


def assert_near(image: Any, expected: Any) -> None:
    """Up to rounding, the same picture."""
    difference = np.abs(np.asarray(image, np.int16) - expected)
    assert difference.max() <= 2
    assert difference.mean() <= 0.1

"""ControlNets on the real server, against diffusers' ControlNet pipelines on the same weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

from bench.server import serving
from tessera.contract import SCHEDULERS
from tessera.manifest import read_manifest
from tessera.variants import VARIANTS
from tessera_client import Client, Control
from tests.conftest import Small

PROMPT = "a large blue star at the top on a green background"


def control_picture(seed: int, width: int = 128, height: int = 128) -> Image.Image:
    """Random blocks: sharp edges, every grey and colour."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (height // 8, width // 8, 3), np.uint8)
    return Image.fromarray(blocks).resize((width, height), Image.Resampling.NEAREST)


USES: dict[str, list[Control]] = {
    "one": [Control("edges", image=control_picture(1))],
    "weaker": [Control("edges", image=control_picture(2), scale=0.4)],
    "window": [Control("edges", image=control_picture(3), start=0.25, end=0.75)],
    "two": [
        Control("edges", image=control_picture(4), scale=0.6, end=0.5),
        Control("edges", image=control_picture(5), scale=-0.3, start=0.2),
    ],
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_pictures_equal_those_of_diffusers_controlnet_pipelines(
    small: Callable[[str], Small], variant: str, tmp_path: Path
) -> None:
    made = small(variant)
    with (
        serving(made.bundle, tmp_path / "log", "--threads=2") as server,
        Client(server.http, timeout=120) as client,
    ):
        plain = np.asarray(client.generate(PROMPT, seed=7).image, np.int16)
        for name, controls in USES.items():
            result = client.generate(PROMPT, seed=7, controls=controls)
            served = np.asarray(result.image, np.int16)
            difference = served - by_diffusers(made, controls, seed=7)
            assert np.abs(difference).max() <= 2, name
            assert np.abs(difference).mean() <= 0.1, name
            assert np.abs(served - plain).max() > 10, f"{name}: the control changed nothing"
            assert [c["name"] for c in result.info.controls] == [c.name for c in controls]


def by_diffusers(made: Small, controls: Sequence[Control], *, seed: int) -> Any:
    defaults = read_manifest(made.bundle).defaults
    kind = getattr(
        diffusers, VARIANTS[made.variant].pipeline.replace("Pipeline", "ControlNetPipeline")
    )
    off = {} if VARIANTS[made.variant].pooled else {"safety_checker": None}
    several = len(controls) > 1
    pipe = kind.from_pretrained(
        str(made.checkpoint),
        controlnet=[made.control] * len(controls) if several else made.control,
        dtype=torch.float32,
        **off,
    )
    pipe.set_progress_bar_config(disable=True)
    spec = SCHEDULERS[defaults.scheduler]
    scheduler = getattr(diffusers, spec.cls)
    pipe.scheduler = scheduler.from_config(pipe.scheduler.config, **dict(spec.settings))
    values: dict[str, Any] = {
        "image": [c.image for c in controls],
        "controlnet_conditioning_scale": [c.scale for c in controls],
        "control_guidance_start": [c.start for c in controls],
        "control_guidance_end": [c.end for c in controls],
    }
    result = pipe(
        PROMPT,
        num_inference_steps=defaults.steps,
        guidance_scale=defaults.guidance,
        width=defaults.width,
        height=defaults.height,
        generator=torch.Generator("cpu").manual_seed(seed),
        **(values if several else {k: v[0] for k, v in values.items()}),
    )
    return np.asarray(result.images[0], np.int16)

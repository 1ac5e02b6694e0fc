"""Every variant, in small and with random weights: from checkpoint to the pictures that Triton
serves, against diffusers' pipeline on the same checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from bench.server import Server, serving
from tessera.contract import SCHEDULERS
from tessera.manifest import read_manifest
from tessera.variants import VARIANTS
from tessera_client import Client
from tests.samples.bundles import Small
from tests.samples.inpainting import dense_edit_equals_diffusers

OPTIONS: dict[str, dict[str, Any]] = {
    "nothing said": {},
    "negative prompt": {"negative_prompt": "a red circle", "seed": 3},
    "empty negative prompt": {"negative_prompt": ""},
    "no guidance": {"guidance": 1.0, "scheduler": "ddim"},
    "another size": {"width": 96, "height": 200, "scheduler": "euler"},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_served_pictures_and_edits_equal_diffusers(
    small: Callable[[str], Small], variant: str, tmp_path: Path
) -> None:
    made = small(variant)
    with serving(made.bundle, tmp_path / "log", "--threads=2") as server:
        for name, options in OPTIONS.items():
            wanted = {"seed": 7, **options}
            difference = served_minus_expected(server, made, wanted)
            assert np.abs(difference).max() <= 2, name
            assert np.abs(difference).mean() <= 0.1, name
        dense_edit_equals_diffusers(server, made)


def served_minus_expected(server: Server, made: Small, wanted: dict[str, Any]) -> Any:
    prompt = "a large blue star at the top on a green background"
    with Client(server.http, timeout=120) as client:
        result = client.generate(prompt, **wanted)
    expected = by_diffusers(made, prompt, **wanted)
    assert expected.std() > 5, "a flat picture would prove nothing"
    return np.asarray(result.image, np.int16) - expected


def by_diffusers(made: Small, prompt: str, *, seed: int, **options: Any) -> Any:
    """The picture, with the bundle's defaults for what is left out."""
    defaults = read_manifest(made.bundle).defaults
    spec = SCHEDULERS[options.pop("scheduler", defaults.scheduler)]
    kind = getattr(diffusers, VARIANTS[made.variant].pipeline)
    off = {} if VARIANTS[made.variant].pooled else {"safety_checker": None}
    pipe = kind.from_pretrained(str(made.checkpoint), dtype=torch.float32, **off)
    pipe.set_progress_bar_config(disable=True)
    scheduler = getattr(diffusers, spec.cls)
    pipe.scheduler = scheduler.from_config(pipe.scheduler.config, **dict(spec.settings))
    result = pipe(
        prompt,
        num_inference_steps=defaults.steps,
        guidance_scale=options.pop("guidance", defaults.guidance),
        width=options.pop("width", defaults.width),
        height=options.pop("height", defaults.height),
        generator=torch.Generator("cpu").manual_seed(seed),
        **options,
    )
    return np.asarray(result.images[0], np.int16)

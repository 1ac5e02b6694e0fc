"""Fixtures that several folders of tests share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from diffusers import DiffusionPipeline
from hypothesis import settings

from tessera_build.bundle import Choices, build_bundle
from tests.fakes.checkpoint import topology

# How long an example takes says how busy the machine is, nothing of the code.
settings.register_profile("tessera", deadline=None)
settings.load_profile("tessera")


@dataclass(frozen=True)
class Small:
    """A checkpoint with random weights in a true topology, and the bundle made of it."""

    variant: str
    pipe: DiffusionPipeline
    checkpoint: Path
    bundle: Path


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Small]:
    """Makes the `Small` of a variant, once per run."""
    made: dict[str, Small] = {}

    def make(variant: str) -> Small:
        if variant not in made:
            folder = tmp_path_factory.mktemp(variant)
            pipe = topology(variant)
            pipe.save_pretrained(folder / "checkpoint")
            build_bundle(
                folder / "checkpoint",
                folder / "bundle",
                choices=Choices(steps=4),
                progress=lambda what, done, total: None,
            )
            made[variant] = Small(variant, pipe, folder / "checkpoint", folder / "bundle")
        return made[variant]

    return make

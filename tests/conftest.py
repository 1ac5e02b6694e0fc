"""Fixtures that several folders of tests share."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import settings

from tessera_build.bundle import build_bundle, is_current
from tests.fakes.checkpoint import controlnet, topology
from tests.samples.bundles import CHOICES, CONTROL_WIDTHS, KEPT, Small

# How long an example takes says how busy the machine is, nothing of the code.
settings.register_profile("tessera", deadline=None)


settings.load_profile("tessera")


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Small]:
    """Makes the `Small` of a variant, once per run; its bundle is kept for the next run."""
    made: dict[str, Small] = {}

    def make(variant: str) -> Small:
        if variant not in made:
            folder = tmp_path_factory.mktemp(variant)
            pipe = topology(variant)
            pipe.save_pretrained(folder / "checkpoint")
            control = controlnet(
                pipe.unet,
                conditioning_embedding_out_channels=CONTROL_WIDTHS,
                controlnet_conditioning_channel_order="bgr" if variant == "sd21" else "rgb",
            )
            control.save_pretrained(folder / "edges")
            done = Small(variant, pipe, control, folder / "checkpoint", KEPT / variant)
            if not is_current(done.bundle, done.checkpoint, CHOICES, done.addons):
                build_bundle(
                    done.checkpoint,
                    done.bundle,
                    choices=CHOICES,
                    progress=lambda what, done, total: None,
                    addons=done.addons,
                )
            made[variant] = done
        return made[variant]

    return make

"""Pictures that diffusers' own pipelines make of a small checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers import DiffusionPipeline

from tessera.manifest import read_manifest
from tessera.variants import VARIANTS
from tessera_client import Control
from tests.samples.bundles import Small
from tests.samples.schedulers import diffusers_scheduler

PROMPT = "a large blue star at the top on a green background"


class References:
    """The pipelines of a checkpoint: its networks are read once, by diffusers, for all of them."""

    def __init__(self, small: Small) -> None:
        self._small = small
        self._kind = VARIANTS[small.variant].pipeline
        self._defaults = read_manifest(small.bundle).defaults
        off = {} if VARIANTS[small.variant].pooled else {"safety_checker": None}
        kind = getattr(diffusers, self._kind)
        self._plain = kind.from_pretrained(str(small.checkpoint), dtype=torch.float32, **off)
        self._plain.set_progress_bar_config(disable=True)
        self._own = self._plain.scheduler

    def picture(self, *, seed: int, **options: Any) -> Any:
        """A picture, with the bundle's defaults for what is left out."""
        return self._draw(self._plain, seed=seed, **options)

    def controlled(self, controls: Sequence[Control], *, seed: int) -> Any:
        """A picture with ControlNets, all of them `edges`. The first says whether all guess."""
        network, several = self._small.control, len(controls) > 1
        pipe = self._pipeline(
            "ControlNet", controlnet=[network] * len(controls) if several else network
        )
        values: dict[str, Any] = {
            "image": [c.image for c in controls],
            "controlnet_conditioning_scale": [c.scale for c in controls],
            "control_guidance_start": [c.start for c in controls],
            "control_guidance_end": [c.end for c in controls],
        }
        guesses = {"guess_mode": controls[0].guess_mode}
        return self._draw(
            pipe,
            seed=seed,
            **guesses,
            **(values if several else {k: v[0] for k, v in values.items()}),
        )

    def united(self, control: Control, mode: int, *, seed: int) -> Any:
        """A picture with the ControlNet-Union."""
        pipe = self._pipeline("ControlNetUnion", controlnet=self._small.union)
        return self._draw(
            pipe,
            seed=seed,
            control_image=control.image,
            control_mode=[mode],
            controlnet_conditioning_scale=control.scale,
        )

    def inpainting(self) -> DiffusionPipeline:
        """The pipeline for edits."""
        pipe = self._pipeline("Inpaint")
        # As in the checkpoint: what another sampler's settings leave in a config is passed on.
        pipe.scheduler = type(self._own).from_config(self._own.config)
        return pipe

    def controlled_inpainting(self) -> DiffusionPipeline:
        """The pipeline for edits with the ControlNet `edges`."""
        return self._pipeline("ControlNetInpaint", controlnet=self._small.control)

    def _pipeline(self, what: str, **networks: Any) -> DiffusionPipeline:
        kind = getattr(diffusers, self._kind.replace("Pipeline", f"{what}Pipeline"))
        pipe = kind.from_pipe(self._plain, **networks)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def _set_scheduler(self, pipe: DiffusionPipeline, name: str) -> None:
        pipe.scheduler = diffusers_scheduler(name, self._own.config)

    def _draw(self, pipe: DiffusionPipeline, *, seed: int, **options: Any) -> Any:
        defaults = self._defaults
        self._set_scheduler(pipe, options.pop("scheduler", defaults.scheduler))
        result = pipe(
            PROMPT,
            num_inference_steps=defaults.steps,
            guidance_scale=options.pop("guidance", defaults.guidance),
            width=options.pop("width", defaults.width),
            height=options.pop("height", defaults.height),
            generator=torch.Generator("cpu").manual_seed(seed),
            **options,
        )
        return np.asarray(result.images[0], np.int16)

"""Records the activations of a template by running the dense UNet on the noised template.

The network's input at a step is the template, noised to that step's level. The noise comes from the
template seed, so no step depends on the one before. Several steps therefore run in one batch. The
prompt is empty, since a template has none.

Knows the template store and torch modules, nothing of requests or Triton.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from tessera.codec.text import TextEncoder, embed
from tessera.codec.vae import encode_template
from tessera.denoise.canvas import canvas_of
from tessera.denoise.sampler import Sampler
from tessera.denoise.unet import conditions_of
from tessera.engines.base import Engine
from tessera.engines.bundle import Bundle
from tessera.engines.registry import Source, open_module
from tessera.errors import Unavailable
from tessera.manifest import Manifest
from tessera.networks.modules import UNetDecoder, UNetEncoder
from tessera.networks.program import Program, Site
from tessera.networks.walk import program_of
from tessera.sparse.record import record
from tessera.sparse.tables import level_sizes
from tessera.templates.storage import Storage, choose_storage
from tessera.templates.store import Recording, RecordingKey, TemplateStore
from tessera.types import Conditions, Tensors
from tessera.variants import VARIANTS

ROWS = 4
"""Steps in one batch."""


@dataclass(frozen=True)
class Networks:
    """The networks that make a recording.

    Attributes:
        encoder, decoder: halves of the UNet, as torch modules.
        vae: engine of the VAE encoder.
        empty_prompt: returns the conditions of an empty prompt, one row, for an image of
            (width, height) pixels.
    """

    encoder: UNetEncoder
    decoder: UNetDecoder
    vae: Engine
    empty_prompt: Callable[[int, int], Conditions]


class Recorder:
    """Makes recordings.

    Args:
        store: where recordings are written.
        manifest: the bundle's manifest.
        scheduler_config: the bundle's scheduler config.
        networks: opens the bundle's networks; called for the first recording only.
        budget: bytes that one recording may take.
    """

    def __init__(
        self,
        store: TemplateStore,
        manifest: Manifest,
        scheduler_config: Mapping[str, Any],
        networks: Callable[[], Networks],
        *,
        budget: int,
    ) -> None:
        self._store = store
        self._manifest = manifest
        self._scheduler_config = scheduler_config
        self._open = networks
        self._budget = budget

    @classmethod
    def of(cls, bundle: Bundle, store: TemplateStore, *, budget: int) -> Recorder:
        """A recorder for a bundle on disk."""
        manifest, config = bundle.manifest, bundle.scheduler_config
        return cls(store, manifest, config, partial(open_networks, bundle), budget=budget)

    def ensure(self, key: RecordingKey) -> tuple[Recording, bool]:
        """The recording of a key, and whether this call made it.

        Args:
            key: the key; its template's image has to be in the store.

        Raises:
            Unavailable: the image was evicted, no storage form fits the budget, or the disk cannot
                be written.
        """
        with self._store.locked(key):
            return self._ensure(key, lambda: None)

    def attempt(self, key: RecordingKey, *, between: Callable[[], None]) -> bool:
        """Like `ensure`, for recordings that no request waits for.

        Args:
            key: the key; its template's image has to be in the store.
            between: called between batches. It may wait, to let requests go first.

        Returns:
            False, immediately, if another process is making this recording.
        """
        with self._store.locked(key, wait=False) as locked:
            if locked:
                self._ensure(key, between)
            return locked

    def _ensure(self, key: RecordingKey, between: Callable[[], None]) -> tuple[Recording, bool]:
        recording = self._store.find(key)
        if recording is not None:
            return recording, False
        image = self._store.pictures.get(key.template)
        if image is None:
            raise Unavailable(f"template {key.template} was evicted; send its image again")
        storage = self._storage(key, image)
        try:
            steps = self._steps(key, image, storage, between)
            return self._store.record(key, storage, steps), True
        except OSError as error:
            raise Unavailable(
                f"template {key.template} could not be recorded: {error.strerror or error}"
            ) from error

    def sites(self) -> tuple[Site, ...]:
        """The sites to record: all but the first convolution's, whose input is known."""
        return tuple(s for s in self.program.sites if s.name != "halo.conv_in")

    @cached_property
    def program(self) -> Program:
        """Of the bundle's UNet."""
        return program_of(self._networks.encoder.source)

    @cached_property
    def _networks(self) -> Networks:
        return self._open()

    def _storage(self, key: RecordingKey, image: npt.NDArray[Any]) -> Storage:
        pixels = self._manifest.latents.pixels
        size = (image.shape[0] // pixels, image.shape[1] // pixels)
        numbers = numbers_per_step(self.program, self.sites(), size)
        storage = choose_storage(numbers, key.steps, self._budget)
        if storage is None:
            raise Unavailable(
                f"a recording of {key.steps} steps at this size does not fit the "
                f"{self._budget / 1e9:g} GB limit of a recording; see --template-size"
            )
        return storage

    @torch.inference_mode()
    def _steps(
        self,
        key: RecordingKey,
        image: npt.NDArray[Any],
        storage: Storage,
        between: Callable[[], None],
    ) -> Iterator[tuple[int, Tensors]]:
        networks = self._networks
        clean = encode_template(networks.vae, image, self._manifest.latents.scale)
        canvas = canvas_of(clean, torch.ones(clean.shape[1:]))
        sampler = Sampler(key.scheduler, self._scheduler_config, steps=key.steps, seed=key.seed)
        conditions = networks.empty_prompt(image.shape[1], image.shape[0])
        kept = storage.kept(key.steps)
        for start in range(0, len(kept), ROWS):
            between()
            steps = kept[start : start + ROWS]
            inputs = {
                "sample": torch.cat(
                    [sampler.template_input(canvas.clean, canvas.noise, i) for i in steps]
                ),
                "timestep": sampler.timesteps[steps].float(),
                **{name: c.expand(len(steps), *c.shape[1:]) for name, c in conditions.items()},
            }
            recorded, _ = record(networks.encoder, networks.decoder, inputs, sites=self.sites())
            for row, step in enumerate(steps):
                yield step, {name: array[row] for name, array in recorded.items()}


def open_networks(bundle: Bundle) -> Networks:
    """Open a bundle's networks. The UNet halves get their own copy of the weights, separate from
    any engine's.
    """
    manifest = bundle.manifest
    variant = VARIANTS[manifest.variant]
    encoder, decoder = (
        open_module(Source.of(bundle.folder, manifest, name))
        for name in ("unet_encoder", "unet_decoder")
    )
    assert isinstance(encoder, UNetEncoder)
    assert isinstance(decoder, UNetDecoder)
    pairs = zip(variant.tokenizers, variant.text_encoders, strict=True)
    encoders = [TextEncoder(bundle.tokenizer(f), bundle.engine(name)) for f, name in pairs]

    def empty_prompt(width: int, height: int) -> Conditions:
        text = embed(encoders, [""])
        return conditions_of(text.hidden, text.pooled, width=width, height=height, variant=variant)

    return Networks(encoder, decoder, bundle.engine("vae_encoder"), empty_prompt)


def numbers_per_step(program: Program, sites: tuple[Site, ...], size: tuple[int, int]) -> int:
    """How many numbers one recorded step has.

    Args:
        program: the UNet's program.
        sites: the sites that are recorded.
        size: (height, width) of the latents.
    """
    tokens = [math.prod(level) for level in level_sizes(size, program.paddings)]
    return int(sum(np.prod(site.shape(tokens)) for site in sites))

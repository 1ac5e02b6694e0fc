"""Records the activations of a template by running the dense UNet on the noised template.

The network's input at a step is the template, noised to that step's level. The noise comes from the
template seed, so no step depends on the one before. Several steps therefore run in one batch. The
prompt is the key's; its embeddings are in the store. ControlNets are asked where they run. An
inpainting UNet is told that nothing is masked.

Knows the template store and torch modules, nothing of requests or Triton.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy.typing as npt
import torch

from tessera.codec.text import TextEncoder, embed
from tessera.codec.vae import encode_template, unmasked
from tessera.codec.words import NO_WORDS, Words
from tessera.contract import PromptSyntax
from tessera.denoise.canvas import canvas_of
from tessera.denoise.opening import HALVES
from tessera.denoise.sampler import Sampler
from tessera.denoise.unet import conditions_of, embed_guidance
from tessera.engines.base import Engine
from tessera.engines.bundle import Bundle
from tessera.errors import Unavailable
from tessera.manifest import Manifest
from tessera.networks.modules import UNetDecoder, UNetEncoder, keeps_type
from tessera.networks.program import Program, Site
from tessera.networks.walk import program_of
from tessera.requests.request import Lora
from tessera.sparse.record import record
from tessera.templates.addons import Adapters, Controls, NoControls, OpenAdapters, Read
from tessera.templates.fitting import numbers_per_step, recorded_sites
from tessera.templates.storage import Storage, choose_storage
from tessera.templates.store import Recording, RecordingKey, TemplateStore
from tessera.types import Conditions, Tensors
from tessera.variants import VARIANTS

ROWS = 4
"""Steps in one batch, if a request waits for the recording. Otherwise one: requests that come
meanwhile wait for it."""

NO_CONTROLS = NoControls()


@dataclass(frozen=True)
class Networks:
    """The networks that make a recording.

    Attributes:
        encoder, decoder: halves of the UNet, as torch modules.
        vae: engine of the VAE encoder.
        embed: returns `hidden` (tokens, width) and `pooled` (width,) of a prompt with a syntax and
            a number of skipped layers; of the empty prompt without arguments.
        conditions: returns the UNet's conditions, one row, for what `embed` returned and an image
            of (width, height) pixels.
        adapters: puts LoRAs into them.
    """

    encoder: UNetEncoder
    decoder: UNetDecoder
    vae: Engine
    embed: Callable[..., Tensors]
    conditions: Callable[[Tensors, int, int], Conditions]
    adapters: Adapters

    def placed(self, inputs: Tensors) -> Tensors:
        """Inputs of the halves where these are, and in their precision."""
        weight = next(self.encoder.parameters())
        return {
            name: tensor.to(
                weight.device, tensor.dtype if keeps_type(name, tensor) else weight.dtype
            )
            for name, tensor in inputs.items()
        }


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
    def of(
        cls,
        bundle: Bundle,
        store: TemplateStore,
        *,
        budget: int,
        adapters: OpenAdapters,
        words: Callable[[], Words] = lambda: NO_WORDS,
    ) -> Recorder:
        """A recorder for a bundle on disk. For `adapters` and `words` see `open_networks`."""
        manifest, config = bundle.manifest, bundle.scheduler_config
        opened = partial(open_networks, bundle, adapters, words)
        return cls(store, manifest, config, opened, budget=budget)

    def ensure(self, key: RecordingKey, controls: Controls = NO_CONTROLS) -> tuple[Recording, bool]:
        """The recording of a key, and whether this call made it.

        Args:
            key: the key; its template's image has to be in the store.
            controls: what the key's ControlNets are asked by.

        Raises:
            Unavailable: the image was evicted, a LoRA's file has changed, a ControlNet's process
                has ended, no storage form fits the budget, or the disk cannot be written.
        """
        with self._store.locked(key):
            return self._ensure(key, lambda: None, controls)

    def attempt(self, key: RecordingKey, *, between: Callable[[], None]) -> bool:
        """Like `ensure`, for recordings that no request waits for. They push out none that clients
        have registered.

        Args:
            key: the key; its template's image has to be in the store.
            between: called before every step. It may wait, to let requests go first.

        Returns:
            False, immediately, if another process is making this recording.

        Raises:
            Unavailable: as `ensure`, or there is no room beside registered recordings.
        """
        with self._store.locked(key, wait=False) as locked:
            if locked:
                self._ensure(key, between, NO_CONTROLS, asked=False)
            return locked

    def _ensure(
        self,
        key: RecordingKey,
        between: Callable[[], None],
        controls: Controls,
        *,
        asked: bool = True,
    ) -> tuple[Recording, bool]:
        recording = self._store.find(key)
        if recording is not None:
            return recording, False
        image = self._store.pictures.get(key.template)
        if image is None:
            raise Unavailable(f"template {key.template} was evicted; send its image again")
        storage, size = self._storage(key, image)
        if not asked and not self._store.has_room(size):
            raise Unavailable(
                f"template {key.template} is not recorded: {size / 1e9:.2g} GB have no room beside "
                "the recordings that clients have registered; see --template-disk"
            )
        try:
            steps = self._steps(key, image, storage, between, controls, rows=ROWS if asked else 1)
            return self._store.record(key, storage, steps), True
        except OSError as error:
            raise Unavailable(
                f"template {key.template} could not be recorded: {error.strerror or error}"
            ) from error

    @torch.inference_mode()
    def embed(self, prompt: str, syntax: str, clip_skip: int) -> Tensors:
        """What a prompt is to the network: `hidden` (tokens, width) and `pooled` (width,)."""
        return self._networks.embed(prompt, syntax, clip_skip)

    @contextmanager
    def reading(self, loras: Sequence[Lora]) -> Iterator[Read]:
        """Read prompts by text encoders with LoRAs. The empty prompt is recorded without.

        Raises:
            InvalidInput: see `Adapters.read`.
        """
        if not loras:
            yield Read()
            return
        try:
            yield self._networks.adapters.read(loras)
        finally:
            self._networks.adapters.read(())

    def release(self) -> None:
        """Give the memory of the networks back. The next recording opens them again."""
        self.__dict__.pop("_networks", None)
        torch.cuda.empty_cache()  # does nothing unless this process has used a GPU

    def sites(self) -> tuple[Site, ...]:
        """The sites to record."""
        return recorded_sites(self.program)

    @cached_property
    def program(self) -> Program:
        """Of the bundle's UNet."""
        return program_of(self._networks.encoder.source)

    @cached_property
    def _networks(self) -> Networks:
        return self._open()

    def _storage(self, key: RecordingKey, image: npt.NDArray[Any]) -> tuple[Storage, int]:
        """The form of a recording, and its bytes."""
        pixels = self._manifest.latents.pixels
        size = (image.shape[0] // pixels, image.shape[1] // pixels)
        numbers = numbers_per_step(self.program, self.sites(), size)
        # An edit with a prompt of its own reads the empty prompt's recording, too.
        budget = self._budget // 2 if key.text else self._budget
        storage = choose_storage(numbers, key.evaluations, budget)
        if storage is None:
            with_prompt = " with a prompt" if key.text else ""
            raise Unavailable(
                f"a recording of {key.steps} steps at this size does not fit the "
                f"{budget / 1e9:g} GB limit of a recording{with_prompt}; see --template-size"
            )
        return storage, storage.bytes(numbers, key.evaluations)

    def _text(self, key: RecordingKey) -> Tensors:
        """The prompt's embeddings. Those of the empty prompt are written for later comparisons,
        even if nobody has that one recorded.

        Raises:
            Unavailable: nobody has left them in the store.
        """
        empty = key.with_text("").digest
        if not key.text or self._store.texts.get(empty) is None:
            text = self._networks.embed()
            self._store.texts.put(empty, text)
            if not key.text:
                return text
        found = self._store.texts.get(key.digest)
        if found is None:
            raise Unavailable(f"the prompt {key.text} of template {key.template} is not known")
        return found

    @torch.inference_mode()
    def _steps(
        self,
        key: RecordingKey,
        image: npt.NDArray[Any],
        storage: Storage,
        between: Callable[[], None],
        controls: Controls,
        *,
        rows: int,
    ) -> Iterator[tuple[int, Tensors]]:
        networks = self._networks
        networks.adapters.apply(key.adapters)
        clean = encode_template(networks.vae, image, self._manifest.latents)
        canvas = canvas_of(clean, torch.ones(clean.shape[1:]))
        masked = [unmasked(clean)[None]] if self._manifest.inpaints else []
        sampler = Sampler(key.scheduler, self._scheduler_config, steps=key.steps, seed=key.seed)
        text = self._text(key)
        conditions = networks.conditions(text, image.shape[1], image.shape[0])
        controlled = controls.begin(key.controls, conditions)
        kept = storage.kept(key.evaluations)
        for start in range(0, len(kept), rows):
            between()
            steps = kept[start : start + rows]
            inputs = [sampler.template_input(canvas.clean, canvas.noise, i) for i in steps]
            sample, timestep = torch.cat(inputs), sampler.timesteps[steps].float()
            join = controlled.start(steps, sample, timestep)
            given = {
                "sample": torch.cat([torch.cat([each, *masked], 1) for each in inputs]),
                "timestep": timestep,
                **{name: c.expand(len(steps), *c.shape[1:]) for name, c in conditions.items()},
            }
            halves, placed = (networks.encoder, networks.decoder), networks.placed(given)
            recorded, _ = record(*halves, placed, sites=self.sites(), join=join)
            for row, step in enumerate(steps):
                yield step, {name: array[row].cpu() for name, array in recorded.items()}


def open_networks(
    bundle: Bundle, adapters: OpenAdapters, words: Callable[[], Words] = lambda: NO_WORDS
) -> Networks:
    """Open a bundle's networks where they are placed. The UNet halves get their own copy of the
    weights, separate from any engine's.

    Args:
        bundle: the bundle.
        adapters: makes what puts LoRAs into them.
        words: returns the words of textual inversion that a prompt may have.
    """
    manifest = bundle.manifest
    variant = VARIANTS[manifest.variant]
    halves = {graph: bundle.module(graph) for graph in HALVES}
    encoder, decoder = halves.values()
    assert isinstance(encoder, UNetEncoder)
    assert isinstance(decoder, UNetDecoder)
    engines = {graph: bundle.engine(graph) for graph in variant.text_encoders}
    encoders = [
        TextEncoder(bundle.tokenizer(folder), engine, width=bundle.text_width(graph))
        for folder, (graph, engine) in zip(variant.tokenizers, engines.items(), strict=True)
    ]

    def embed_prompt(
        prompt: str = "", syntax: str = PromptSyntax.PLAIN, clip_skip: int = 0
    ) -> Tensors:
        text = embed(encoders, [prompt], syntax, clip_skips=[clip_skip], words=words())
        return {"hidden": text.hidden[0], "pooled": text.pooled[0]}

    def conditions(text: Tensors, width: int, height: int) -> Conditions:
        """A row of the network's conditions, for a size in pixels."""
        return conditions_of(
            text["hidden"][None],
            text["pooled"][None],
            width=width,
            height=height,
            variant=variant,
            guidance=embed_guidance(manifest.defaults.guidance, manifest.guidance_width),
        )

    vae, lora = bundle.engine("vae_encoder"), adapters(halves, engines)
    return Networks(encoder, decoder, vae, embed_prompt, conditions, lora)

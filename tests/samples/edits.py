"""A small UNet with a store of recordings, and edits that run on both."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel

from tessera.codec.vae import encode_template
from tessera.contract import EditQuality
from tessera.denoise.canvas import TEMPLATE_SEED, Canvas, canvas_of
from tessera.denoise.running import Running, RunningControl, start
from tessera.denoise.sampler import Sampler
from tessera.denoise.tick import tick
from tessera.denoise.unet import UNet
from tessera.edits import steps
from tessera.edits.chooser import StepChooser
from tessera.edits.quality import Policies, Policy
from tessera.edits.steps import SparseSteps
from tessera.engines.devices import Device, Devices
from tessera.engines.torch import TorchEngine
from tessera.networks.modules import UNetDecoder, UNetEncoder
from tessera.networks.sparse_unet import SparseUNet, TextProjections
from tessera.plan import AdapterUse
from tessera.requests.request import Lora
from tessera.sparse.engines import SparseUNetEngines, SparseUNets
from tessera.templates import recorder as recorder_module
from tessera.templates.addons import Read
from tessera.templates.memory import StepMemory
from tessera.templates.nearest import Nearness
from tessera.templates.recorder import Networks, Recorder
from tessera.templates.storage import Storage
from tessera.templates.store import RecordingKey, TemplateStore
from tests.fakes.engine import FakeEngine, vae_encoder_engine
from tests.fakes.sparse import small_unet
from tests.samples.plans import plan
from tests.samples.requests import MANIFEST
from tests.samples.schedulers import DEMO

STEPS = 5
WIDTH, HEIGHT = 64, 48
UNET = small_unet("demo")
EMPTY = torch.randn(1, 7, 24, generator=torch.Generator().manual_seed(1))
PICTURE = np.random.default_rng(2).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
DENSE = UNet(TorchEngine(UNetEncoder(UNET)), TorchEngine(UNetDecoder(UNET)), max_rows=16)


class Recorded:
    """What is asked of the LoRAs of the network that is recorded."""

    def __init__(self) -> None:
        self.applied: list[tuple[AdapterUse, ...]] = []

    def apply(self, adapter_set: tuple[AdapterUse, ...]) -> None:
        self.applied.append(adapter_set)

    def read(self, loras: Sequence[Lora]) -> Read:
        raise NotImplementedError


class Only(Policies):
    """The same policies for all edits, with LoRAs, too."""

    def of(
        self, quality: str, nearness: Nearness, ratio: float, *, adapted: bool = False
    ) -> tuple[Policy, ...]:
        return self.reached[EditQuality.BEST, nearness][0][1]


def only(*found: Policy) -> Policies:
    """These policies for all edits."""
    pairs = product((EditQuality.BALANCED, EditQuality.BEST), Nearness)
    return Only(dict.fromkeys(pairs, ((1.0, found),)))


class World:
    """A store with a recorder and the sparse path on it, its network on one device or several."""

    def __init__(
        self,
        root: Path,
        *,
        budget: int = 10**9,
        memory: StepMemory | None = None,
        device: str = "cpu",
        devices: int = 1,
        unet: UNet2DConditionModel = UNET,
    ) -> None:
        self.store = TemplateStore(root, budget=10**9)
        self.opened = 0
        self.adapters = Recorded()
        manifest = dataclasses.replace(MANIFEST, inpaints=unet.config.in_channels == 9)
        self.recorder = Recorder(self.store, manifest, DEMO, self.open, budget=budget)
        self._unet = unet
        network = copy.deepcopy(unet)
        sparse = [TorchEngine(SparseUNet(network), device=device) for _ in range(devices)]
        self.engines = [FakeEngine(engine.run, device) for engine in sparse]
        text = TorchEngine(TextProjections(network), device=device)
        self.devices = Devices([Device(f"{device}-{i}", device) for i in range(devices)])
        self.steps = SparseSteps(
            SparseUNets(
                [SparseUNetEngines(engine, text) for engine in self.engines],
                self.devices,
                SparseUNet(unet).program,
                {"unet_sparse": sparse[0], "unet_text": text},
            ),
            self.store,
            [memory or StepMemory(budget=10**9)] * devices,
            bundle=MANIFEST.digest,
            max_rows=16,
            policies=only(Policy(margin=0)),
        )

    def open(self) -> Networks:
        self.opened += 1
        halves = UNetEncoder(self._unet).eval(), UNetDecoder(self._unet).eval()
        return Networks(
            *halves,
            vae_encoder_engine(),
            lambda *prompt: {"hidden": EMPTY[0], "pooled": torch.zeros(1)},
            lambda text, width, height: {"encoder_hidden_states": text["hidden"][None]},
            self.adapters,
        )

    def key(self, picture: Any = PICTURE, scheduler: str = "euler") -> RecordingKey:
        identity, _ = self.store.pictures.put(picture)
        return RecordingKey(MANIFEST.digest, identity, scheduler, STEPS, TEMPLATE_SEED)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr(recorder_module, "choose_storage", lambda *a: Storage("float32"))
    monkeypatch.setattr(steps, "WARM_UP", 0)
    return World(tmp_path)


def mask(*squares: tuple[int, int, int, int]) -> torch.Tensor:
    active = torch.zeros(HEIGHT // 4, WIDTH // 4)
    for x, y, w, h in squares:
        active[y : y + h, x : x + w] = 1
    return active


def canvas(active: torch.Tensor, picture: Any = PICTURE) -> Canvas:
    return canvas_of(encode_template(vae_encoder_engine(), picture, MANIFEST.latents), active)


def edit(
    world: World | None,
    active: torch.Tensor,
    *,
    seed: int = 1,
    guidance: float = 3.0,
    scheduler: str = "euler",
    first: int = 0,
    text: torch.Tensor | None = None,
    texts: tuple[str, ...] = (),
    adapters: tuple[AdapterUse, ...] = (),
    chooser: StepChooser | None = None,
    mode: str = "auto",
    quality: str = "balanced",
    controls: tuple[RunningControl, ...] = (),
) -> Running:
    """A request before its first step; dense without a world."""
    identity = world.key(scheduler=scheduler).template if world else "t"
    wanted = plan(
        seed=seed,
        guidance=guidance,
        steps=STEPS,
        scheduler=scheduler,
        first_step=first,
        template=identity,
        quality=quality,
        texts=texts,
        mode=mode,
        adapters=adapters,
        controls=tuple(control.use for control in controls),
    )
    sampler = Sampler(scheduler, DEMO, steps=STEPS, seed=seed, first=first)
    if text is None:
        generator = torch.Generator().manual_seed(seed)
        text = torch.randn(1, 7, 24, generator=generator)
        text = torch.cat([EMPTY, text]) if wanted.guided else text
    conditions = {"encoder_hidden_states": text}
    ground = canvas(active)
    shape, of_edit = (4, HEIGHT // 4, WIDTH // 4), {"canvas": ground, "controls": controls}
    running = start(wanted, conditions, sampler, shape=shape, **of_edit)  # type: ignore[arg-type]
    if world:
        running.sparse = world.steps.admit(wanted, ground, conditions, chooser)
    return running


def run(
    requests: list[Running],
    world: World | None = None,
    ticks: int = STEPS,
    dense: UNet = DENSE,
) -> None:
    with torch.inference_mode():
        for number in range(1, ticks + 1):
            going = [r for r in requests if not r.finished]
            tick(going, dense.predict, number, sparse=world.steps if world else None)
    for request in requests:
        assert request.error is None, request.error


FULL = mask((0, 0, 16, 12))
PART = mask((2, 3, 5, 4), (12, 9, 2, 2))

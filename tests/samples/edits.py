"""A small UNet with a store of recordings, and edits that run on both."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tessera.codec.vae import encode_template
from tessera.denoise.canvas import TEMPLATE_SEED, Canvas, canvas_of
from tessera.denoise.running import Running, start
from tessera.denoise.sampler import Sampler
from tessera.denoise.tick import tick
from tessera.denoise.unet import UNet
from tessera.edits import steps
from tessera.edits.steps import SparseSteps
from tessera.engines.torch import TorchEngine
from tessera.networks.modules import UNetDecoder, UNetEncoder
from tessera.networks.sparse_unet import SparseUNet, TextProjections
from tessera.sparse.engines import SparseUNetEngines
from tessera.templates import recorder as recorder_module
from tessera.templates.memory import StepMemory
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


class World:
    """A store with a recorder and the sparse path on it, its network on any device."""

    def __init__(
        self,
        root: Path,
        *,
        budget: int = 10**9,
        memory: StepMemory | None = None,
        device: str = "cpu",
    ) -> None:
        self.store = TemplateStore(root, budget=10**9)
        self.opened = 0
        self.recorder = Recorder(self.store, MANIFEST, DEMO, self.open, budget=budget)
        network = copy.deepcopy(UNET)
        self.engine = FakeEngine(TorchEngine(SparseUNet(network), device=device).run, device)
        text = TorchEngine(TextProjections(network), device=device)
        self.steps = SparseSteps(
            SparseUNetEngines(self.engine, text),
            SparseUNet(UNET).program,
            self.store,
            memory or StepMemory(budget=10**9),
            bundle=MANIFEST.digest,
            max_rows=16,
        )

    def open(self) -> Networks:
        self.opened += 1
        halves = UNetEncoder(UNET).eval(), UNetDecoder(UNET).eval()
        return Networks(
            *halves, vae_encoder_engine(), lambda w, h: {"encoder_hidden_states": EMPTY}
        )

    def key(self, picture: Any = PICTURE, scheduler: str = "euler") -> RecordingKey:
        identity = self.store.pictures.put(picture)
        return RecordingKey(MANIFEST.digest, identity, scheduler, STEPS, TEMPLATE_SEED)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr(recorder_module, "choose_storage", lambda *a: Storage("float32"))
    monkeypatch.setattr(steps, "WARM_UP", 0)
    monkeypatch.setattr(steps, "MARGIN", 0)
    return World(tmp_path)


def mask(*squares: tuple[int, int, int, int]) -> torch.Tensor:
    active = torch.zeros(HEIGHT // 4, WIDTH // 4)
    for x, y, w, h in squares:
        active[y : y + h, x : x + w] = 1
    return active


def canvas(active: torch.Tensor, picture: Any = PICTURE) -> Canvas:
    return canvas_of(encode_template(vae_encoder_engine(), picture, 1.0), active)


def edit(
    world: World | None,
    active: torch.Tensor,
    *,
    seed: int = 1,
    guidance: float = 3.0,
    scheduler: str = "euler",
    first: int = 0,
    text: torch.Tensor | None = None,
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
    )
    sampler = Sampler(scheduler, DEMO, steps=STEPS, seed=seed, first=first)
    if text is None:
        generator = torch.Generator().manual_seed(seed)
        text = torch.randn(1, 7, 24, generator=generator)
        text = torch.cat([EMPTY, text]) if wanted.guided else text
    conditions = {"encoder_hidden_states": text}
    ground = canvas(active)
    running = start(wanted, conditions, sampler, shape=(4, HEIGHT // 4, WIDTH // 4), canvas=ground)
    if world:
        running.sparse = world.steps.admit(wanted, ground, conditions)
    return running


def run(requests: list[Running], world: World | None = None, ticks: int = STEPS) -> None:
    with torch.inference_mode():
        for number in range(1, ticks + 1):
            going = [r for r in requests if not r.finished]
            tick(going, DENSE.predict, number, sparse=world.steps if world else None)
    for request in requests:
        assert request.error is None, request.error


FULL = mask((0, 0, 16, 12))
PART = mask((2, 3, 5, 4), (12, 9, 2, 2))

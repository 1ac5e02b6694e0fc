"""Sparse denoising of requests from recordings, against the dense path of the same UNet."""

from __future__ import annotations

import copy
import time
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
from tessera.edits import opening, steps
from tessera.edits.chooser import Line, StepChooser
from tessera.edits.steps import SparseSteps
from tessera.engines.torch import TorchEngine
from tessera.errors import Unavailable
from tessera.networks.modules import UNetDecoder, UNetEncoder
from tessera.networks.sparse_unet import SparseUNet, TextProjections
from tessera.sparse.engines import SparseUNetEngines
from tessera.templates import recorder as recorder_module
from tessera.templates.memory import DeviceMemory, StepMemory
from tessera.templates.recorder import Networks, Recorder
from tessera.templates.storage import CHOICES, Storage
from tessera.templates.store import Recording, RecordingKey, TemplateStore
from tessera.types import Tensors
from tests.fakes.engine import FakeEngine, vae_encoder_engine
from tests.fakes.sparse import small_unet
from tests.unit.denoise.test_sampler import DEMO
from tests.unit.denoise.test_tick import plan
from tests.unit.requests.test_request import MANIFEST

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


@pytest.mark.parametrize("scheduler", ["euler", "ddim", "dpmpp_2m", "euler_ancestral"])
def test_with_every_latent_active_sparse_is_dense(world: World, scheduler: str) -> None:
    """Whatever has been recorded: everything is live."""
    world.recorder.ensure(world.key(scheduler=scheduler))
    sparse = edit(world, FULL, scheduler=scheduler)
    dense = edit(None, FULL, scheduler=scheduler)
    run([sparse], world)
    run([dense])
    assert sparse.stats.sparse_ticks == STEPS
    torch.testing.assert_close(sparse.latents, dense.latents, atol=1e-3, rtol=0)


@pytest.mark.parametrize("first", [0, 2])
@pytest.mark.parametrize("scheduler", ["euler", "ddim", "dpmpp_2m_karras", "lcm"])
def test_the_recording_is_of_the_same_noise_level(world: World, scheduler: str, first: int) -> None:
    """With the template's own noise and prompt a first step is exact."""
    world.recorder.ensure(world.key(scheduler=scheduler))
    options = {"seed": TEMPLATE_SEED, "guidance": 1.0, "text": EMPTY, "first": first}
    sparse = edit(world, PART, scheduler=scheduler, **options)  # type: ignore[arg-type]
    dense = edit(None, PART, scheduler=scheduler, **options)  # type: ignore[arg-type]
    run([sparse], world, ticks=1)
    run([dense], ticks=1)
    assert sparse.stats.sparse_ticks == 1
    scale = float(dense.latents.abs().max())
    torch.testing.assert_close(sparse.latents, dense.latents, atol=1e-4 * scale, rtol=0)


def test_inactive_latents_stay_the_templates(world: World) -> None:
    world.recorder.ensure(world.key())
    sparse = edit(world, PART)
    run([sparse], world)
    assert torch.equal(sparse.latents[0][:, PART == 0], canvas(PART).clean[0][:, PART == 0])


def test_the_noisiest_steps_are_dense_and_the_mask_is_computed_with_a_margin(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(steps, "WARM_UP", 0.3)
    monkeypatch.setattr(steps, "MARGIN", 1)
    world.recorder.ensure(world.key())
    whole, late, dense = edit(world, PART), edit(world, PART, first=3), edit(None, PART)
    assert whole.sparse is not None
    assert whole.sparse.active_latents == 7 * 6 + 4 * 4
    run([whole, late], world, ticks=2)
    assert (whole.stats.sparse_ticks, late.stats.sparse_ticks) == (0, 2)
    run([dense], ticks=2)
    torch.testing.assert_close(whole.latents, dense.latents, atol=1e-5, rtol=0)
    run([whole], world, ticks=3)
    assert whole.stats.sparse_ticks == 3
    assert torch.equal(whole.latents[0][:, PART == 0], canvas(PART).clean[0][:, PART == 0])


def test_masks_share_a_call_when_little_is_padding(world: World) -> None:
    world.recorder.ensure(world.key())
    masks = [mask((0, 0, 5, 4)), mask((3, 2, 6, 3)), mask((0, 0, 16, 12)), mask((7, 7, 4, 5))]
    together = [edit(world, m, seed=i) for i, m in enumerate(masks)]
    run(together, world)
    assert world.engine.batches == [2, 6] * STEPS or world.engine.batches == [6, 2] * STEPS
    assert sorted(r.stats.mean_batch for r in together) == [1, 3, 3, 3]
    for i, m in enumerate(masks):
        alone = edit(world, m, seed=i)
        run([alone], world)
        torch.testing.assert_close(together[i].latents, alone.latents, atol=1e-3, rtol=0)


def test_edits_and_generations_share_ticks(world: World) -> None:
    world.recorder.ensure(world.key())
    sparse, late = edit(world, PART), edit(world, PART, seed=5, first=2)
    dense = edit(None, PART, seed=2)
    run([sparse, late, dense], world)
    assert (sparse.stats.sparse_ticks, late.stats.sparse_ticks, dense.stats.sparse_ticks) == (
        STEPS,
        3,
        0,
    )
    assert sparse.stats.mean_batch == (3 * 2 + 1 * (STEPS - 3)) / STEPS
    for request in (sparse, late, dense):
        assert request.stats.first_tick == 1


def test_the_next_steps_inputs_are_ready_before_they_are_needed(world: World) -> None:
    world.recorder.ensure(world.key())
    request = edit(world, PART)
    run([request], world, ticks=1)
    (call,) = world.steps._calls.values()
    assert set(call.ready) == {(0,), (1,)}
    assert world.steps.memory.counters.misses <= 1
    run([request], world, ticks=1)
    assert set(call.ready) == {(1,), (2,)}


class SlowStore(TemplateStore):
    """One whose disk stalls."""

    def load(self, recording: Recording, step: int) -> Tensors:
        time.sleep(0.5)
        return super().load(recording, step)


def test_waiting_for_a_recording_is_no_part_of_what_a_step_costs(world: World) -> None:
    world.recorder.ensure(world.key())
    world.steps._store = SlowStore(world.store.root, budget=10**9)
    request, told = edit(world, PART), list[float]()

    class Told:
        def observe(self, path: str, size: object, tokens: float, milliseconds: float) -> None:
            assert path == "sparse"
            told.append(milliseconds * request.branches)

    with torch.inference_mode():
        began = time.perf_counter()
        tick([request], DENSE.predict, 1, sparse=world.steps, observer=Told())
        took = 1e3 * (time.perf_counter() - began)
    assert request.stats.cache_load_ms > 100
    assert 0 < told[0] <= took - request.stats.cache_load_ms


@pytest.mark.parametrize("how", ["damaged", "evicted"])
def test_an_edit_that_loses_its_recording_goes_on_densely(world: World, how: str) -> None:
    recording, _ = world.recorder.ensure(world.key())
    request, other = edit(world, PART), edit(None, PART, seed=2)
    for step in (3, 4):
        if how == "damaged":
            recording.file(step).write_bytes(b"x" * recording.file(step).stat().st_size)
    if how == "evicted":
        world.store.evict(recording.key.template)
        world.steps.memory.drop(recording.key.digest)
    run([request, other], world)
    assert request.sparse is None
    assert request.stats.ticks == STEPS
    assert request.stats.sparse_ticks < STEPS
    assert world.store.find(recording.key) is None
    assert request.latents.isfinite().all()


def test_a_recording_is_made_once_and_again_when_it_is_damaged(world: World) -> None:
    recording, made = world.recorder.ensure(world.key())
    assert made
    assert world.recorder.ensure(world.key()) == (recording, False)
    recording.file(0).write_bytes(b"")
    with pytest.raises(Exception, match="does not match its checksum"):
        world.store.load(recording, 0)
    assert world.recorder.ensure(world.key())[1]
    assert world.opened == 1


def test_two_at_once_record_once(world: World) -> None:
    other = Recorder(world.store, MANIFEST, DEMO, world.open, budget=10**9)
    key, found = world.key(), list[tuple[Recording, bool]]()
    import threading

    threads = [
        threading.Thread(target=lambda r=r: found.append(r.ensure(key)))
        for r in (world.recorder, other)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(made for _, made in found) == [False, True]


def test_a_recording_for_nobody_is_left_to_whoever_makes_it(world: World) -> None:
    other = TemplateStore(world.store.root, budget=10**9)
    calls: list[int] = []
    with other.locked(world.key()):
        assert not world.recorder.attempt(world.key(), between=lambda: calls.append(1))
    assert world.store.find(world.key()) is None
    assert world.recorder.attempt(world.key(), between=lambda: calls.append(1))
    assert world.store.find(world.key()) is not None
    assert len(calls) == 2  # for 5 steps


def test_what_cannot_be_recorded_is_said(tmp_path: Path) -> None:
    poor = World(tmp_path, budget=1000)
    with pytest.raises(Unavailable, match=r"does not fit the 1e-06 GB .* see --template-size"):
        poor.recorder.ensure(poor.key())
    gone = poor.key()
    poor.store.evict(gone.template)
    with pytest.raises(Unavailable, match="was evicted; send its image again"):
        poor.recorder.ensure(gone)


def test_a_tier_on_the_device_answers_before_the_hosts(world: World, tmp_path: Path) -> None:
    host = StepMemory(budget=10**9)
    device = DeviceMemory(host, device="cpu", budget=10**9)
    tiered = World(tmp_path / "tiered", memory=device)
    for each in (world, tiered):
        each.recorder.ensure(each.key())
    plain, first, second = edit(world, PART), edit(tiered, PART), edit(tiered, PART)
    run([plain], world)
    run([first], tiered)
    asked = host.counters.hits + host.counters.misses
    run([second], tiered)
    assert torch.equal(first.latents, plain.latents)
    assert torch.equal(second.latents, plain.latents)
    assert (device.counters.entries, host.counters.entries) == (STEPS, STEPS)
    assert host.counters.hits + host.counters.misses == asked == STEPS
    assert device.counters.hits > STEPS


def test_without_a_recording_there_is_no_sparse_path(world: World) -> None:
    assert edit(world, PART).sparse is None


@pytest.mark.parametrize("storage", CHOICES, ids=lambda s: s.name)
def test_every_form_of_keeping_gives_about_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, storage: Storage
) -> None:
    monkeypatch.setattr(recorder_module, "choose_storage", lambda *a: storage)
    monkeypatch.setattr(steps, "WARM_UP", 0)
    world = World(tmp_path)
    world.recorder.ensure(world.key())
    sparse, dense = edit(world, FULL), edit(None, FULL)
    run([sparse], world)
    run([dense])
    torch.testing.assert_close(sparse.latents, dense.latents, atol=1e-2, rtol=0)
    part = edit(world, PART)
    run([part], world)
    assert part.latents.isfinite().all()


def test_a_replaced_process_knows_what_the_first_has_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TESSERA_BOARD", str(tmp_path / "board"))
    chooser = StepChooser(Line(0.0, 2.0), Line(3.0, 1.0))
    chooser.observe("sparse", (8, 8), 16, 50.0)
    measured: list[int] = []

    def measure_once() -> StepChooser:
        measured.append(1)
        return chooser

    costs = tmp_path / "board.costs"
    first = opening._remembered(costs, measure_once)
    second = opening._remembered(costs, measure_once)
    assert len(measured) == 1
    assert second == first == chooser
    assert second.cost("sparse", (8, 8), 16) == pytest.approx(50)

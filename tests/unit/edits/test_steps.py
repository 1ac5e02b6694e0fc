"""Sparse denoising of requests from recordings, against the dense path of the same UNet."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch

from tessera.contract import SCHEDULERS
from tessera.denoise.canvas import TEMPLATE_SEED
from tessera.denoise.tick import tick
from tessera.edits import steps
from tessera.edits.chooser import Line, StepChooser
from tessera.edits.quality import Policy
from tessera.edits.state import SparseState
from tessera.templates import recorder as recorder_module
from tessera.templates.memory import DeviceMemory, StepMemory
from tessera.templates.storage import CHOICES, Storage
from tessera.templates.store import Recording, TemplateStore
from tessera.types import Tensors
from tests.samples.edits import (
    DENSE,
    EMPTY,
    FULL,
    PART,
    STEPS,
    World,
    canvas,
    edit,
    mask,
    only,
    run,
)


@pytest.mark.parametrize(
    "scheduler",
    ["euler", "ddim", "dpmpp_2m", "euler_ancestral", "heun", "kdpm2", "dpmpp_sde", "pndm"],
)
def test_with_every_latent_active_sparse_is_dense(world: World, scheduler: str) -> None:
    """Whatever has been recorded: everything is live."""
    world.recorder.ensure(world.key(scheduler=scheduler))
    sparse = edit(world, FULL, scheduler=scheduler)
    dense = edit(None, FULL, scheduler=scheduler)
    ticks = SCHEDULERS[scheduler].count(STEPS)
    run([sparse], world, ticks=ticks)
    run([dense], ticks=ticks)
    assert sparse.finished
    assert sparse.stats.sparse_ticks == ticks
    torch.testing.assert_close(sparse.latents, dense.latents, atol=1e-3, rtol=0)


@pytest.mark.parametrize("first", [0, 2])
@pytest.mark.parametrize("scheduler", ["euler", "ddim", "dpmpp_2m_karras", "lcm", "heun", "pndm"])
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


def test_branches_have_recordings_of_their_own(world: World) -> None:
    """With the template's own noise a first step is exact, guided, too."""
    own, key = "0" * 16, world.key()
    prompt = torch.randn(1, 7, 24, generator=torch.Generator().manual_seed(3))
    world.store.texts.put(
        key.with_text(own).digest, {"hidden": prompt[0], "pooled": torch.zeros(1)}
    )
    for each in (key, key.with_text(own)):
        assert world.recorder.ensure(each)[1]
    text = torch.cat([EMPTY, prompt])
    sparse = edit(world, PART, seed=TEMPLATE_SEED, text=text, texts=("", own))
    dense = edit(None, PART, seed=TEMPLATE_SEED, text=text)
    other = edit(world, PART, seed=2)
    run([sparse, other], world, ticks=1)
    run([dense], ticks=1)
    assert isinstance(sparse.sparse, SparseState)
    assert sparse.sparse.chosen.nearness == "own"
    assert [r.key.text for r in sparse.sparse.recordings] == ["", own]
    assert sparse.stats.mean_batch == 2  # shared with one whose branches share a recording
    scale = float(dense.latents.abs().max())
    torch.testing.assert_close(sparse.latents, dense.latents, atol=1e-4 * scale, rtol=0)


def test_the_cheapest_policy_is_taken(world: World) -> None:
    """By the costs of steps here: a wide margin where tokens cost little, else dense steps."""
    world.recorder.ensure(world.key())
    wide, often = Policy(margin=3), Policy(margin=0, every=2)
    world.steps.policies = only(often, wide)
    cheap_tokens = StepChooser(Line(0.0, 1.0), Line(50.0, 0.1))
    dear_tokens = StepChooser(Line(0.0, 1.0), Line(0.0, 3.0))
    for chooser, margin, planned in (
        (cheap_tokens, 3, [True] * STEPS),
        (dear_tokens, 0, [False, True] * 2 + [False]),
    ):
        state = edit(world, PART, chooser=chooser).sparse
        assert isinstance(state, SparseState)
        assert (state.margin, list(state.planned)) == (margin, planned)
        assert state.kinds == state.planned
    too_dear = StepChooser(Line(0.0, 1.0), Line(1000.0, 0.0))
    assert edit(world, PART, chooser=too_dear).sparse is None
    forced = edit(world, PART, chooser=cheap_tokens, mode="sparse").sparse
    assert isinstance(forced, SparseState)
    assert forced.margin == 0  # the first, whatever it costs


def test_inactive_latents_stay_the_templates(world: World) -> None:
    world.recorder.ensure(world.key())
    sparse = edit(world, PART)
    run([sparse], world)
    assert torch.equal(sparse.latents[0][:, PART == 0], canvas(PART).clean[0][:, PART == 0])


def test_the_noisiest_steps_are_dense_and_the_mask_is_computed_with_a_margin(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(steps, "WARM_UP", 0.3)
    world.steps.policies = only(Policy(margin=1))
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
    assert world.engines[0].batches == [2, 6] * STEPS or world.engines[0].batches == [6, 2] * STEPS
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
    ((ready,),) = world.steps._calls.values()
    assert set(ready.inputs) == {(0,), (1,)}
    assert world.steps.memory.counters.misses <= 1
    run([request], world, ticks=1)
    assert set(ready.inputs) == {(1,), (2,)}


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

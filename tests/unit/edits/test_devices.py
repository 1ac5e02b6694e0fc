"""Sparse steps on several devices: the same latents, and requests that lose theirs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from tessera.denoise.running import Running
from tessera.denoise.tick import tick
from tests.samples.edits import DENSE, FULL, PART, STEPS, World, edit, mask, run

MASKS = [PART, mask((0, 0, 6, 5)), mask((3, 2, 6, 3)), FULL]


def edits(world: World) -> list[Running]:
    return [edit(world, m, seed=i) for i, m in enumerate(MASKS)]


@pytest.fixture
def worlds(world: World, tmp_path: Path) -> tuple[World, World]:
    """On one device and on three, with the same recordings."""
    world.recorder.ensure(world.key())
    return world, World(tmp_path, devices=3)


def test_latents_are_those_of_one_device(worlds: tuple[World, World]) -> None:
    one, three = worlds
    expected, found = edits(one), edits(three)
    run(expected, one)
    run(found, three)
    assert all(engine.batches for engine in three.engines)
    rows = [sum(sum(e.batches) for e in world.engines) for world in worlds]
    assert rows == [STEPS * 2 * len(MASKS)] * 2
    for request, other in zip(expected, found, strict=True):
        torch.testing.assert_close(request.latents, other.latents, atol=1e-4, rtol=0)


def test_the_branches_of_one_edit_go_to_two_devices(worlds: tuple[World, World]) -> None:
    _, three = worlds
    run([edit(three, PART)], three)
    assert [e.batches for e in three.engines] == [[1] * STEPS, [1] * STEPS, []]


def test_a_lost_device_ends_the_edits_that_had_rows_there(worlds: tuple[World, World]) -> None:
    _, three = worlds
    requests = [edit(three, PART, seed=i) for i in range(3)]  # two rows on each device
    run(requests, three, ticks=1)

    def fail(inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        raise RuntimeError("an illegal memory access was encountered")

    three.engines[1]._run = fail
    three.devices[1].probe = lambda: fail({})
    with torch.inference_mode():
        tick(requests, DENSE.predict, 2, sparse=three.steps)
    assert "cpu-1 failed while it computed this request" in str(requests[1].error)
    others = [requests[0], requests[2]]
    run(others, three, ticks=STEPS - 2)
    assert [(r.step, r.stats.sparse_ticks) for r in others] == [(STEPS, STEPS)] * 2

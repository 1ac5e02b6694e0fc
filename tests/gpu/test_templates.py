"""Sparse edits with recordings on a GPU against the same on the CPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tessera.edits import steps
from tessera.templates import recorder
from tessera.templates.memory import DeviceMemory, StepMemory
from tessera.templates.storage import Storage
from tests.samples.edits import PART, STEPS, World, edit, run


def test_edits_from_recordings_on_the_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder, "choose_storage", lambda *a: Storage("float32"))
    monkeypatch.setattr(steps, "WARM_UP", 0)
    host = StepMemory(budget=10**9, pinned=True)
    device = DeviceMemory(host, device="cuda:0", budget=10**9)
    plain = World(tmp_path / "cpu")
    tiered = World(tmp_path / "cuda", memory=device, device="cuda:0")
    found = []
    for world in (plain, tiered, tiered):
        world.recorder.ensure(world.key())
        found.append(edit(world, PART))
        run(found[-1:], world)
    for other in found[1:]:
        torch.testing.assert_close(other.latents, found[0].latents, atol=1e-3, rtol=0)
    assert device.counters.entries == STEPS
    assert device.counters.hits > STEPS

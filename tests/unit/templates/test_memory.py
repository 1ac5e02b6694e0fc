"""Recorded steps in memory."""

from __future__ import annotations

import random
import time

import pytest
import torch

from tessera.templates import memory as memory_module
from tessera.templates.memory import DeviceMemory, StepMemory
from tessera.templates.store import Damaged
from tessera.types import Tensors
from tests.samples.templates import arrays
from tests.samples.waiting import comes


class TestMemory:
    """Recorded steps in memory."""

    def test_an_entry_is_read_once(self) -> None:
        memory, reads = StepMemory(budget=10**9), list[int]()

        def read() -> Tensors:
            reads.append(1)
            return arrays(0)

        memory.ahead(("d", 0), read)
        for _ in range(3):
            assert torch.equal(memory.get(("d", 0), read).result()["norm.n"], arrays(0)["norm.n"])
        assert len(reads) == 1
        assert (memory.counters.hits, memory.counters.misses) == (3, 0)
        memory.get(("d", 1), read).result()
        assert memory.counters.misses == 1
        assert memory.counters.hit_rate == 0.75

    def test_how_much_of_a_recording_is_here(self) -> None:
        size = sum(a.nbytes for a in arrays(0).values())
        memory = StepMemory(budget=2 * size)
        for name in (("d", 0), ("d", 1), ("e", 0)):
            memory.get(name, lambda: arrays(0)).result()
            comes(lambda name=name: memory.holds(name))  # type: ignore[misc]
        comes(lambda: memory.held == {"memory": {"d": 1, "e": 1}})
        memory.drop("d")
        assert memory.held == {"memory": {"e": 1}}

    def test_how_much_of_a_recording_is_in_each_tier(self) -> None:
        host = StepMemory(budget=10**9)
        device = DeviceMemory(host, device="cpu", budget=10**9)
        device.get(("d", 0), lambda: arrays(0)).result()
        host.get(("d", 1), lambda: arrays(0)).result()
        comes(lambda: sum(device.held["memory"].values()) == 2)
        assert device.held == {"device": {"d": 1}, "memory": {"d": 2}}

    def test_a_stalled_read_is_soon_forgotten(self, monkeypatch: pytest.MonkeyPatch) -> None:
        memory = StepMemory(budget=10**9)
        assert memory.read_ms == 0

        def stalled() -> Tensors:
            time.sleep(2.0)
            return arrays(0)

        memory.get(("slow", 0), stalled).result()
        assert (before := memory.read_ms) > 1600
        for step in range(4):
            memory.get(("d", step), lambda: arrays(0)).result()
        assert 0 < memory.read_ms < before / 4
        monkeypatch.setattr(memory_module, "_RECENT_S", 0.0)
        assert memory.read_ms == 0

    def test_the_least_recently_used_leave(self) -> None:
        size = sum(a.nbytes for a in arrays(0).values())
        memory = StepMemory(budget=2 * size, threads=1)
        for step in (0, 1, 0, 2):
            memory.get(("d", step), lambda s=step: arrays(s)).result()  # type: ignore[misc]
        comes(lambda: memory.counters.evictions == 1)
        memory.get(("d", 0), lambda: pytest.fail("0 was used last")).result()
        before = memory.counters.misses
        memory.get(("d", 1), lambda: arrays(1)).result()
        assert memory.counters.misses == before + 1
        comes(lambda: memory.counters.evictions == 2)
        assert memory.counters.bytes <= 2 * size

    def test_a_recording_that_is_too_large_keeps_some_steps_and_harms_no_other(self) -> None:
        """Least recently used first, a cyclic reader would never find anything."""
        size = sum(a.nbytes for a in arrays(0).values())
        memory = StepMemory(budget=4 * size, threads=1)
        memory.get(("small", 0), lambda: arrays(0), whole=size).result()
        reads = list[int]()

        def read() -> Tensors:
            reads.append(1)
            return arrays(0)

        for step in list(range(6)) * 3:
            for ahead in range(step, min(step + 2, 6)):
                memory.ahead(("large", ahead), read, whole=6 * size)
            memory.get(("large", step), read, whole=6 * size).result()
        assert 6 <= len(reads) < 16
        comes(lambda: memory.counters.bytes <= 4 * size)
        assert memory.holds(("small", 0))
        assert memory.counters.bytes > 2 * size

    @pytest.mark.parametrize("on_device", [False, True])
    def test_many_recordings_that_are_too_large_exceed_the_budget_by_few_steps(
        self, on_device: bool
    ) -> None:
        """Edits of different templates, some of which end early and leave what was read ahead."""
        size = sum(a.nbytes for a in arrays(0).values())
        draw = random.Random(0)
        memory = StepMemory(budget=6 * size, threads=1)
        if on_device:
            memory = DeviceMemory(memory, device="cpu", budget=6 * size)
        memory.get(("small", 0), lambda: arrays(0), whole=size).result()
        for edit in range(40):
            digest, whole = f"large {draw.randrange(30)}", 10 * size
            for step in range(10 if edit % 3 else draw.randrange(10)):
                for ahead in range(step + 1, min(step + 4, 10)):
                    memory.ahead((digest, ahead), lambda: arrays(0), whole=whole)
                memory.get((digest, step), lambda: arrays(0), whole=whole).result()
            for name, tier in memory.tiers.items():
                comes(lambda n=name, t=tier: sum(memory.held[n].values()) == t.entries)  # type: ignore[misc]
                assert sum(memory.held[name].values()) <= 6 + 10
        assert memory.holds(("small", 0))
        memory.drop("small")
        for number in range(30):
            memory.drop(f"large {number}")
        assert [tier.entries for tier in memory.tiers.values()] == [0] * len(memory.tiers)

    def test_a_recording_that_fits_takes_the_room_of_others(self) -> None:
        size = sum(a.nbytes for a in arrays(0).values())
        memory = StepMemory(budget=3 * size, threads=1)
        for name in ("old", "new"):
            for step in range(3):
                memory.get((name, step), lambda: arrays(0), whole=3 * size).result()
        comes(lambda: memory.held["memory"].get("new") == 3)
        assert memory.held == {"memory": {"new": 3}}

    def test_what_leaves_the_device_stays_in_host_memory(self) -> None:
        size = sum(a.nbytes for a in arrays(0).values())
        host = StepMemory(budget=10 * size)
        device = DeviceMemory(host, device="cpu", budget=size)
        for step in (0, 1):
            device.get(("d", step), lambda s=step: arrays(s)).result()  # type: ignore[misc]
            comes(lambda: device.counters.bytes == size)
        comes(lambda: device.tiers["device"].evictions == 1)
        assert device.holds(("d", 0))
        again = device.get(("d", 0), lambda: pytest.fail("it is in host memory")).result()
        assert torch.equal(again["norm.n"], arrays(0)["norm.n"])
        device.drop("d")
        assert [tier.entries for tier in device.tiers.values()] == [0, 0]

    def test_a_failed_read_is_told_and_forgotten(self) -> None:
        memory = StepMemory(budget=10**9)

        def fail() -> Tensors:
            raise Damaged("d", "no")

        with pytest.raises(Damaged):
            memory.get(("d", 0), fail).result()
        comes(lambda: memory.counters.entries == 0)
        assert memory.get(("d", 0), lambda: arrays(0)).result()
        comes(lambda: memory.holds(("d", 0)))
        memory.drop("d")
        assert (memory.counters.bytes, memory.counters.entries) == (0, 0)

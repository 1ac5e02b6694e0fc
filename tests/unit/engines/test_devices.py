"""Rows over devices: shares, costs, failures."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tessera.engines.base import EngineInfo
from tessera.engines.devices import Device, DeviceLost, Devices, devices_at
from tessera.engines.replicas import Replicas, refitted_together
from tessera.errors import BundleError
from tessera.shared import average
from tests.fakes.engine import FakeEngine
from tests.samples.waiting import comes

DENSE = ("dense", 64)


def devices_of(*paces: float) -> Devices:
    return Devices([Device(f"gpu:{i}", "cpu", pace=pace) for i, pace in enumerate(paces)])


def counts(devices: Devices, rows: int) -> list[int]:
    shares = dict(devices.split(rows, DENSE))
    return [len(range(rows)[shares[i]]) if i in shares else 0 for i in range(len(devices))]


class TestShares:
    @given(st.integers(1, 40), st.lists(st.floats(0.1, 10), min_size=1, max_size=8))
    def test_every_row_is_in_one_share_in_order(self, rows: int, paces: list[float]) -> None:
        shares = devices_of(*paces).split(rows, DENSE)
        assert [n for _, share in shares for n in range(rows)[share]] == list(range(rows))

    @given(st.integers(1, 12), st.lists(st.floats(0.1, 10), min_size=2, max_size=3))
    def test_no_other_split_ends_earlier(self, rows: int, paces: list[float]) -> None:
        chosen = counts(devices_of(*paces), rows)
        ends = max(n * pace for n, pace in zip(chosen, paces, strict=True))
        every = [[i, rows - i] for i in range(rows + 1)]
        if len(paces) == 3:
            every = [[i, j, rows - i - j] for i, _ in every for j in range(rows - i + 1)]
        best = min(max(n * p for n, p in zip(split, paces, strict=True)) for split in every)
        assert ends == pytest.approx(best)

    def test_the_branches_of_one_request_go_to_two_devices(self) -> None:
        assert counts(devices_of(1.0, 1.3), 2) == [1, 1]

    def test_a_device_that_costs_three_times_as_much_gets_a_quarter(self) -> None:
        assert counts(devices_of(1.0, 3.0), 8) == [6, 2]

    def test_costs_are_learnt_from_calls_and_forgotten(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        devices = devices_of(1.0, 1.0)

        def work(device: int, rows: slice, _: int) -> None:
            time.sleep((0.005, 0.1)[device] * (rows.stop - rows.start))

        def learnt() -> bool:
            """The first two calls prepare; a machine that stalls in the third takes more."""
            devices.run(devices.split(8, DENSE), work, DENSE)
            return counts(devices, 8)[0] > 5

        comes(learnt)
        monkeypatch.setattr(average, "FRESH_S", 0.0)
        assert counts(devices, 8) == [4, 4]

    def test_times_that_show_no_cost_are_not_learnt(self) -> None:
        devices = devices_of(1.0, 1.0)
        for _ in range(3):
            devices.run(
                devices.split(8, DENSE), lambda d, r, _: time.sleep(0.01 * d), DENSE, learn=False
            )
        assert counts(devices, 8) == [4, 4]


class TestRuns:
    def test_shares_run_at_once_and_their_results_are_in_order(self) -> None:
        barrier = threading.Barrier(3, timeout=60)

        def work(device: int, rows: slice, index: int) -> tuple[int, slice, bool]:
            barrier.wait()
            return index, rows, torch.is_inference_mode_enabled()

        devices = devices_of(1.0, 1.0, 1.0)
        results = devices.run(devices.split(3, DENSE), work, DENSE)
        assert results == [(i, slice(i, i + 1), True) for i in range(3)]

    def test_a_failure_on_a_device_that_works_is_the_calls(self) -> None:
        devices = devices_of(1.0, 1.0)

        def work(device: int, rows: slice, _: int) -> None:
            if device:
                raise ValueError("odd rows")

        with pytest.raises(ValueError, match="odd rows"):
            devices.run(devices.split(2, DENSE), work, DENSE)
        assert devices.in_use == [0, 1]

    def test_a_device_that_fails_its_probe_too_is_left_out(self) -> None:
        devices = devices_of(1.0, 1.0, 1.0)
        devices[1].probe = lambda: 1 / 0

        def work(device: int, rows: slice, _: int) -> int:
            return 1 // (device != 1)

        with pytest.raises(DeviceLost) as caught:
            devices.run(devices.split(6, DENSE), work, DENSE)
        assert caught.value.rows == slice(2, 4)
        assert caught.value.error.status == "UNAVAILABLE"
        assert str(caught.value.error) == (
            "gpu:1 failed while it computed this request; send it again, the server goes on with "
            "gpu:0, gpu:2"
        )
        assert counts(devices, 6) == [3, 0, 3]

    def test_the_last_device_is_not_left_out(self) -> None:
        devices = devices_of(1.0, 1.0)
        for i in range(2):
            devices[i].probe = lambda: 1 / 0

        def fail(device: int, rows: slice, _: int) -> None:
            raise RuntimeError("no memory")

        with pytest.raises(DeviceLost):
            devices.run(devices.split(2, DENSE), fail, DENSE)
        assert len(devices.in_use) == 1
        with pytest.raises(RuntimeError, match="no memory"):
            devices.run(devices.split(2, DENSE), fail, DENSE)
        assert len(devices.in_use) == 1


class Broken(FakeEngine):
    """One whose refits fail."""

    def refit(self, weights: Any) -> None:
        raise RuntimeError("lost")


WEIGHTS = {"w": torch.ones(2)}


class TestRefits:
    def test_all_devices_get_the_weights(self) -> None:
        engines = [FakeEngine(dict) for _ in range(3)]
        Replicas(engines, devices_of(1, 1, 1)).refit(WEIGHTS)
        assert [engine.refits for engine in engines] == [[WEIGHTS]] * 3

    def test_a_lost_device_does_not_fail_them(self) -> None:
        devices = devices_of(1, 1)
        devices[0].probe = lambda: 1 / 0
        good = FakeEngine(dict)
        replicas = Replicas([Broken(dict), good], devices)
        for _ in range(2):
            replicas.refit(WEIGHTS)
        assert good.refits == [WEIGHTS] * 2
        assert devices.in_use == [1]

    def test_an_error_of_the_weights_is_raised(self) -> None:
        devices = devices_of(1, 1)
        with pytest.raises(RuntimeError, match="lost"):
            Replicas([FakeEngine(dict), Broken(dict)], devices).refit(WEIGHTS)
        assert devices.in_use == [0, 1]

    def test_one_device_needs_no_replicas(self) -> None:
        engine = FakeEngine(dict)
        assert refitted_together([engine], devices_of(1)) is engine
        many = refitted_together([engine, FakeEngine(dict)], devices_of(1, 1))
        assert many.describe() == EngineInfo("fake", "cpu", {}, {})


class TestPlaces:
    @pytest.fixture
    def gpus(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)

    @pytest.mark.usefixtures("gpus")
    def test_auto_is_every_gpu(self) -> None:
        assert [d.name for d in devices_at(["auto"])] == ["cuda:0", "cuda:1"]
        assert [d.name for d in devices_at(["auto"], gpu=False)] == ["cpu"]
        assert [d.name for d in devices_at(["gpu:1", "cpu"])] == ["cuda:1", "cpu"]

    def test_auto_is_the_cpu_without_one(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        assert devices_at(["auto"], threads=3) == [Device("cpu", "cpu", 3)]

    def test_devices_on_a_cpu_share_its_threads(self) -> None:
        assert [d.threads for d in devices_at(["cpu", "cpu"], threads=5)] == [2, 2]
        assert [d.threads for d in devices_at(["cpu", "cpu"], threads=1)] == [1, 1]
        assert [d.threads for d in devices_at(["cpu"])] == [0]

    @pytest.mark.usefixtures("gpus")
    def test_a_gpu_that_is_not_there_is_named(self) -> None:
        with pytest.raises(BundleError, match="no gpu:2 for this engine; accepted: cpu, gpu:0, g"):
            devices_at(["gpu:0", "gpu:2"])
        with pytest.raises(BundleError, match="no gpu:0 for this engine; accepted: cpu"):
            devices_at(["gpu:0"], gpu=False)

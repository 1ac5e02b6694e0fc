"""The dense UNet on several devices: the same predictions, and requests that lose theirs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence

import pytest
import torch

from tessera.denoise.running import Running
from tessera.denoise.tick import Predict, tick
from tessera.denoise.unet import Join, UNet, unet_on
from tessera.engines.devices import Device, Devices
from tests.fakes.engine import FakeEngine, unet_engines
from tests.samples.plans import plan, running

Run = Callable[[Mapping[str, torch.Tensor]], dict[str, torch.Tensor]]


def spread(count: int) -> tuple[list[FakeEngine], Devices, Predict]:
    """Encoders, devices and predict function of a UNet on `count` devices."""
    pairs = [unet_engines() for _ in range(count)]
    devices = Devices([Device(f"gpu:{i}", "cpu") for i in range(count)])
    encoders, decoders = zip(*pairs, strict=True)
    unet = unet_on(devices, encoders, decoders, max_rows=4)
    return list(encoders), devices, unet.predict


def stepped(requests: Sequence[Running], predict: Predict, ticks: int = 1) -> None:
    for number in range(1, ticks + 1):
        tick([r for r in requests if not r.finished], predict, number)


def latents_on_one(count: int) -> list[torch.Tensor]:
    requests = [running(plan(seed=s)) for s in range(count)]
    stepped(requests, UNet(*unet_engines(), max_rows=4).predict)
    return [r.latents for r in requests]


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_predictions_are_those_of_one_device(count: int) -> None:
    encoders, _, predict = spread(count)
    requests = [running(plan(seed=s)) for s in range(5)]
    stepped(requests, predict)
    assert sum(n for e in encoders for n in e.batches) == 10
    assert all(e.batches for e in encoders)
    for request, expected in zip(requests, latents_on_one(5), strict=True):
        torch.testing.assert_close(request.latents, expected, atol=1e-6, rtol=0)


class Adding:
    """A join that adds the number of the row."""

    def add(self, encoded: dict[str, torch.Tensor], first: int = 0) -> None:
        rows = torch.arange(first, first + len(encoded["mid"]))
        encoded["mid"] += rows[:, None, None, None]

    def maps(self, shapes: Sequence[torch.Size], rows: int) -> list[torch.Tensor]:
        raise AssertionError("only sparse steps need them")


def test_residuals_go_to_the_rows_that_need_them() -> None:
    inputs = (
        torch.randn(11, 4, 8, 8),
        torch.ones(11),
        {"encoder_hidden_states": torch.ones(11, 7, 8)},
    )
    join: Join = Adding()
    _, _, many = spread(2)  # 6 rows on a device, of which an engine takes 4
    one = UNet(*unet_engines(), max_rows=16).predict
    torch.testing.assert_close(many(*inputs, join), one(*inputs, join), atol=1e-6, rtol=0)


def test_two_devices_compute_at_the_same_time() -> None:
    """Not how fast, which bench/devices.py measures. Each waits until both have begun: one after
    the other they would never end.
    """
    encoders, _, predict = spread(2)
    begun = threading.Barrier(2, timeout=60)
    for encoder in encoders:

        def met(
            inputs: Mapping[str, torch.Tensor], run: Run = encoder._run
        ) -> dict[str, torch.Tensor]:
            begun.wait()
            return run(inputs)

        encoder._run = met
    request = running(plan())
    stepped([request], predict)
    assert (request.error, request.step) == (None, 1)


def lose(engine: FakeEngine, device: Device) -> None:
    """Let a device fail for good."""

    def fail(inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        raise RuntimeError("an illegal memory access was encountered")

    engine._run = fail
    device.probe = lambda: fail({})


def test_a_lost_device_ends_the_requests_that_had_rows_there() -> None:
    encoders, devices, predict = spread(2)
    requests = [running(plan(seed=s)) for s in range(4)]
    stepped(requests, predict)
    lose(encoders[1], devices[1])
    stepped(requests, predict)
    for request in requests[2:]:
        assert "gpu:1 failed while it computed this request" in str(request.error)
    assert [(r.error, r.step) for r in requests[:2]] == [(None, 2)] * 2
    newcomer = running(plan(seed=3))
    stepped([*requests[:2], newcomer], predict)
    assert newcomer.error is None
    torch.testing.assert_close(newcomer.latents, latents_on_one(4)[3], atol=1e-6, rtol=0)
    assert encoders[0].batches[-1] == 2  # 6 rows, 4 at a time


def test_a_request_whose_branches_are_on_both_ends_with_either() -> None:
    encoders, devices, predict = spread(2)
    lose(encoders[0], devices[0])
    request, unguided = running(plan()), running(plan(guidance=1.0))
    stepped([request, unguided], predict)  # two rows on the first device, one on the second
    assert "gpu:0 failed" in str(request.error)
    assert (unguided.error, unguided.step) == (None, 1)


def refuse_nan(engine: FakeEngine) -> None:
    run = engine._run

    def checked(inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        if inputs["sample"].isnan().any():
            raise ValueError("NaN")
        return run(inputs)

    engine._run = checked


def test_a_request_that_fails_on_every_device_costs_none_of_them() -> None:
    encoders, devices, predict = spread(2)
    for encoder in encoders:
        refuse_nan(encoder)
    odd, well = running(plan()), running(plan(seed=2))
    odd.latents = torch.full_like(odd.latents, torch.nan)
    stepped([odd, well], predict)
    assert isinstance(odd.error, ValueError)
    assert (well.error, well.step) == (None, 1)
    assert devices.in_use == [0, 1]

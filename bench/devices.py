"""What several devices bring, as far as a machine without a GPU can tell.

    python -m bench.devices [--turns 30]

1. Stand-ins whose halves take a known time for each row: a tick of one guided request on two of
   them against one. Shows what splitting, threads and joining cost.
2. This machine's cores as two devices against one device with all of them: ticks of the demo
   bundle's UNet, by the number of guided requests.
3. A tick while pictures are decoded on the same cores by another process, without pause, against a
   tick alone. A picture is decoded once in its life, so this is more than any load brings.

Sides alternate. The result is written to `bench/results/devices.json`.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from multiprocessing.synchronize import Event
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from bench import report
from bench.server import DEMO_BUNDLE
from tessera.codec.vae import decode_latents
from tessera.denoise.opening import example_inputs, open_unet, unet_config
from tessera.denoise.unet import unet_on
from tessera.engines.base import EngineInfo
from tessera.engines.bundle import Bundle
from tessera.engines.devices import Device, Devices
from tessera.shared.settings import PlaceSettings

ROW_S = 0.025
"""What a row of a stand-in's call takes, half of it in each half of the UNet."""
REQUESTS = (1, 2, 4, 8)
SIDE = 32
"""Of the latents of 128 x 128 pixels in the demo bundle."""
console = Console(highlight=False)
Call = Callable[[], object]


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description="ticks on several devices")
    parser.add_argument("--turns", type=int, default=30, help="calls of each side")
    turns: int = parser.parse_args().turns
    machine = report.describe_machine(os.cpu_count() or 1)
    rows = [_stand_ins(turns), *_cores(turns), *_decoding(turns)]
    table = Table("what", "one, ms", "other, ms", "ratio", title="medians (quartiles)")
    for row in rows:
        table.add_row(row["what"], _shown(row["one"]), _shown(row["other"]), f"{row['ratio']:.2f}")
    console.print(table)
    report.write("devices", {"turns": turns}, {"rows": rows}, machine=machine)


class SleepingHalf:
    """A half of the UNet that takes a known time for each row and returns its first input.

    Args:
        outputs: names of what it returns.
    """

    def __init__(self, outputs: tuple[str, ...]) -> None:
        self._outputs = outputs

    def run(self, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """See `Engine.run`."""
        first = next(iter(inputs.values()))
        time.sleep(len(first) * ROW_S / 2)
        return dict.fromkeys(self._outputs, first)

    def refit(self, weights: Mapping[str, torch.Tensor]) -> None:
        """It has no weights."""

    def describe(self) -> EngineInfo:
        """It takes what it is given."""
        return EngineInfo("sleeping", "cpu", {}, {})


def _stand_ins(turns: int) -> dict[str, Any]:
    text = {"encoder_hidden_states": torch.ones(2, 1, 1)}
    inputs = torch.zeros(2, 4, SIDE, SIDE), torch.zeros(2), text
    one, two = (_sleepers(count) for count in (1, 2))
    return _compared(
        f"one guided request, stand-ins of {1e3 * ROW_S:g} ms a row: one device, two",
        lambda: one.predict(*inputs),
        lambda: two.predict(*inputs),
        turns,
    )


def _sleepers(count: int) -> Any:
    devices = Devices([Device(f"stand-in {i}", "cpu") for i in range(count)])
    encoders = [SleepingHalf(("mid", "emb", "skip_0")) for _ in range(count)]
    decoders = [SleepingHalf(("prediction",)) for _ in range(count)]
    return unet_on(devices, encoders, decoders, max_rows=16)


def _cores(turns: int) -> Iterator[dict[str, Any]]:
    one, two = (_demo(places) for places in (("cpu",), ("cpu", "cpu")))
    bundle = Bundle(DEMO_BUNDLE)
    config = unet_config(bundle)
    for requests in REQUESTS:
        inputs = example_inputs(config, (SIDE, SIDE), rows=2 * requests)
        yield _compared(
            f"{requests} guided requests of 128 x 128: all cores as one device, as two",
            lambda inputs=inputs: one.predict(*inputs),  # type: ignore[misc]
            lambda inputs=inputs: two.predict(*inputs),  # type: ignore[misc]
            turns,
        )


def _demo(places: tuple[str, ...]) -> Any:
    return open_unet(Bundle(DEMO_BUNDLE, places=PlaceSettings(unet=places))).unet


def _decoding(turns: int) -> Iterator[dict[str, Any]]:
    unet, bundle = _demo(("cpu",)), Bundle(DEMO_BUNDLE)
    config = unet_config(bundle)
    inputs = example_inputs(config, (SIDE, SIDE), rows=4)
    for side in (SIDE, 2 * SIDE):
        pixels = side * bundle.manifest.latents.pixels
        with _decoder(side) as (go, stop):

            def disturbed(go: Event = go, stop: Event = stop) -> Iterator[None]:
                go.set()
                yield
                stop.set()

            yield _compared(
                f"2 guided requests of 128 x 128: alone, while {pixels} x {pixels} is decoded",
                lambda: unet.predict(*inputs),
                lambda: unet.predict(*inputs),
                turns,
                around_other=contextmanager(disturbed),
            )


@contextmanager
def _decoder(side: int) -> Iterator[tuple[Event, Event]]:
    """A process that decodes pictures between two events, again and again."""
    context = multiprocessing.get_context("spawn")
    go, stop, ready = context.Event(), context.Event(), context.Event()
    process = context.Process(target=_decode, args=(side, go, stop, ready), daemon=True)
    process.start()
    ready.wait()
    try:
        yield go, stop
    finally:
        process.terminate()
        process.join()


def _decode(side: int, go: Event, stop: Event, ready: Event) -> None:
    bundle = Bundle(DEMO_BUNDLE)
    engine, latents = bundle.engine("vae_decoder"), bundle.manifest.latents
    noise = torch.randn(1, latents.channels, side, side)
    decode_latents(engine, noise, latents)
    ready.set()
    while True:
        go.wait()
        go.clear()
        while not stop.is_set():
            decode_latents(engine, noise, latents)
        stop.clear()


def _compared(
    what: str,
    one: Call,
    other: Call,
    turns: int,
    *,
    around_other: Callable[[], Any] | None = None,
) -> dict[str, Any]:
    for _ in range(3):
        one()
        other()
    times: tuple[list[float], list[float]] = ([], [])
    for _ in track(range(turns), what, console=console, transient=True):
        times[0].append(_milliseconds(one))
        if around_other is None:
            times[1].append(_milliseconds(other))
            continue
        with around_other():
            time.sleep(0.02)  # it is in the middle of a picture
            times[1].append(_milliseconds(other))
        time.sleep(0.05)  # it has ended the picture
    quartiles = [statistics.quantiles(side, n=4) for side in times]
    ratio = quartiles[1][1] / quartiles[0][1]
    return {"what": what, "one": quartiles[0], "other": quartiles[1], "ratio": ratio, "ms": times}


def _milliseconds(call: Call) -> float:
    began = time.perf_counter()
    call()
    return 1e3 * (time.perf_counter() - began)


def _shown(quartiles: list[float]) -> str:
    low, median, high = quartiles
    return f"{median:.1f} ({low:.1f} to {high:.1f})"


if __name__ == "__main__":
    main()

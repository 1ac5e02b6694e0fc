"""The real server with torch engines against diffusers' pipeline on the same GPU and weights:
pictures one at a time, what a tick costs beyond the networks, requests at random times, edits.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.gpu import networks
from bench.gpu.sparse import square
from bench.gpu.timing import Options, milliseconds, options
from bench.random_bundle import pipeline_of, write_random_bundle
from bench.server import serving
from tessera_client import Client

PROMPT = "a large red circle at the left on a blue background"
EDITS = (0.11, 0.35)
LOAD = 0.8
"""Of what one request at a time reaches."""


def main(arguments: Sequence[str] | None = None) -> int:
    """A row for each figure; 1 if one of them could not be had."""
    chosen = options(arguments)
    with tempfile.TemporaryDirectory(prefix="tessera-bench-", dir=roomy_folder()) as name:
        folder = Path(name)
        bundle, trace = folder / chosen.variant, folder / "trace.json"
        began = time.monotonic()
        edits = chosen.variant == "sd15"
        extra = ("unet_sparse", "unet_text") if edits else ()
        size = networks.SIZES[chosen.variant] if not chosen.tiny else networks.TINY_SIZE
        configs = networks.configs(chosen.variant, tiny=chosen.tiny)
        write_random_bundle(bundle, chosen.variant, configs, max_size=size, extra=extra)
        written = time.monotonic()
        chosen.report.add(what="write the bundle", s=written - began)
        flags = ("--engine=torch", f"--trace={trace}", "--threads=1" if chosen.tiny else "")
        with serving(bundle, folder / "log", *filter(None, flags)) as server:
            chosen.report.add(what="start the server", s=time.monotonic() - written)
            with Client(server.grpc, timeout=300) as client:
                failed = Session(chosen, client, bundle, trace, size).run()
        if failed:
            print("server:\n" + "\n".join((folder / "log").read_text().splitlines()[-60:]))
            print("\n".join(failed))
        return int(bool(failed))


class Session:
    """A client and diffusers' pipeline, in turns.

    Args:
        chosen: the command line.
        client: of the server.
        bundle: that it serves.
        trace: the file of the server's spans.
        size: of pictures, in pixels.
    """

    def __init__(
        self, chosen: Options, client: Client, bundle: Path, trace: Path, size: int
    ) -> None:
        self._chosen, self._client, self._bundle = chosen, client, bundle
        self._trace, self._size = trace, size
        self._steps = 2 if chosen.tiny else 30
        self._rounds = 1 if chosen.tiny else 3
        self._alone = 0.0
        self._pipe: Any = None

    def run(self) -> list[str]:
        """Every figure; what went wrong."""
        failed = []
        parts = [self._pictures, self._ticks, self._poisson, self._compiled]
        if self._chosen.variant == "sd15":
            parts.insert(3, self._edits)
        else:
            parts = [self._pictures, self._ticks, self._compiled, self._poisson]
        for part in parts:
            try:
                part()
            except Exception as error:
                said = (str(error).splitlines() or [""])[-1]
                self._chosen.report.add(what=part.__name__[1:], note="failed")
                failed.append(f"{part.__name__[1:]}: {type(error).__name__}: {said}")
        return failed

    def _served(self, steps: int, seed: int = 1) -> Any:
        side = self._size
        return self._client.generate(
            PROMPT, steps=steps, seed=seed, scheduler="euler", width=side, height=side
        )

    def _diffused(self, steps: int) -> None:
        seed = torch.Generator("cpu").manual_seed(1)
        size = {"width": self._size, "height": self._size}
        self._pipe(PROMPT, num_inference_steps=steps, generator=seed, **size)

    def _pictures(self) -> None:
        """One at a time, against diffusers' eager pipeline, channels last."""
        self._pipe = pipeline_of(self._bundle)
        self._pipe.set_progress_bar_config(disable=True)
        cuda = torch.cuda.is_available()
        self._pipe.to(*(("cuda", torch.float16) if cuda else ("cpu", torch.float32)))
        self._pipe.unet.to(memory_format=torch.channels_last)
        self._against("diffusers", self._steps)
        self._alone = milliseconds(lambda: self._served(10)) / 1e3

    def _against(self, name: str, steps: int) -> None:
        sides: dict[str, Callable[[], Any]] = {
            "server": lambda: self._served(steps),
            name: lambda: self._diffused(steps),
        }
        times: dict[str, list[float]] = {side: [] for side in sides}
        for number in range(self._rounds + 1):
            for side, call in sides.items():
                took = milliseconds(call) / 1e3
                if number:
                    times[side].append(took)
        ours, theirs = (statistics.median(times[side]) for side in sides)
        row = {"what": f"picture, {steps} steps, against {name}", "s": ours, "other s": theirs}
        self._chosen.report.add(**row, ratio=ours / theirs)

    def _ticks(self) -> None:
        """What a tick takes beyond the calls of the two halves, milliseconds."""
        begin = self._trace.stat().st_size
        self._served(4 if self._chosen.tiny else 30)
        time.sleep(0.2)
        text = self._trace.read_text()[begin:].rstrip().rstrip(",").lstrip("[")
        spans = [e for e in json.loads(f"[{text}]") if e["ph"] == "X"]
        ticks = [e for e in spans if e["name"] == "tick"]
        beyond = [tick["dur"] - _inside(tick, spans) for tick in ticks]
        median = statistics.median(e["dur"] for e in ticks)
        row = {"what": "tick", "s": median / 1e6, "other s": statistics.median(beyond) / 1e6}
        self._chosen.report.add(**row, note="other: outside the halves")

    def _poisson(self) -> None:
        """Requests of 10 steps at random times, at a share of what one at a time reaches."""
        count = 3 if self._chosen.tiny else 24 if self._chosen.variant == "sd15" else 10
        alone = max(self._alone, 0.01)
        chance = random.Random(1)
        moments = [0.0]
        while len(moments) < count:
            moments.append(moments[-1] + chance.expovariate(LOAD / alone))
        began = time.monotonic()

        def one(number: int) -> float:
            due = began + moments[number]
            time.sleep(max(due - time.monotonic(), 0))
            self._served(10, seed=number)
            return time.monotonic() - due

        with ThreadPoolExecutor(count) as pool:
            times = sorted(pool.map(one, range(count)))
        last = times[min(round(0.95 * count), count - 1)]
        row = {"what": f"{count} requests, Poisson at {LOAD:.0%}", "s": statistics.median(times)}
        note = f"median and 95 %; {count / (time.monotonic() - began):.2f} pictures/s"
        self._chosen.report.add(**row, **{"other s": last}, note=note)

    def _edits(self) -> None:
        """Dense and sparse edits of a recorded template."""
        steps = 4 if self._chosen.tiny else 20
        picture = np.random.default_rng(1).integers(0, 256, (self._size,) * 2 + (3,), np.uint8)
        began = time.monotonic()
        self._client.register_template(picture, steps=steps, scheduler="euler")
        self._chosen.report.add(what="record a template", s=time.monotonic() - began)
        for ratio in EDITS[:1] if self._chosen.tiny else EDITS:
            mask = 255 * square(self._size, ratio).astype(np.uint8)
            took = {}
            for mode in ("dense", "sparse"):

                def edit(mode: str = mode, mask: Any = mask) -> Any:
                    more: dict[str, Any] = {"steps": steps, "scheduler": "euler", "mode": mode}
                    return self._client.edit(picture, mask, PROMPT, seed=1, **more)

                edit()
                took[mode] = min(milliseconds(edit) for _ in range(self._rounds)) / 1e3
            row = {"what": f"sparse edit of {ratio}", "s": took["sparse"], "other s": took["dense"]}
            self._chosen.report.add(
                **row, ratio=took["sparse"] / took["dense"], note="other: dense"
            )

    def _compiled(self) -> None:
        """One at a time, against diffusers' pipeline with its UNet compiled."""
        backend = "eager" if self._chosen.tiny else "inductor"
        unet = self._pipe.unet
        self._pipe.unet = torch.compile(unet, fullgraph=True, dynamic=False, backend=backend)
        try:
            self._against("diffusers compiled", self._steps)
        finally:
            self._pipe.unet = unet


def roomy_folder() -> str | None:
    """Where gigabytes of weights go: memory if there is plenty, else the temporary folder."""
    memory = Path("/dev/shm")
    if memory.is_dir():
        free = os.statvfs(memory)
        if free.f_bavail * free.f_frsize > 24e9:
            return str(memory)
    return None


def _inside(tick: dict[str, Any], spans: list[dict[str, Any]]) -> float:
    """Microseconds of a tick's halves, on its own thread."""
    return float(
        sum(
            e["dur"]
            for e in spans
            if e["name"] in ("encoder half", "decoder half")
            and e["tid"] == tick["tid"]
            and tick["ts"] <= e["ts"] <= tick["ts"] + tick["dur"]
        )
    )


if __name__ == "__main__":
    sys.exit(main())

"""One client, one picture at a time: the server over HTTP against diffusers' pipeline in this
process, on the same weights, steps and number of threads, taking turns.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

import torch
from diffusers import StableDiffusionPipeline
from rich.progress import track
from rich.table import Table

from bench.server import DEMO_CHECKPOINT, Server
from tessera_client import Client, Info

PROMPT = "a large red circle at the left on a blue background"
GUIDANCE = 4.0


@dataclass(frozen=True)
class Turn:
    """Milliseconds of one picture from each side; `info` is what the server says of its own."""

    server_ms: float
    diffusers_ms: float
    info: Info

    @property
    def outside_ms(self) -> float:
        """What the client waited for beyond the time inside the engines."""
        return self.server_ms - self.info.engine_ms


def measure(server: Server, *, rounds: int, steps: int, threads: int) -> list[Turn]:
    """`rounds` pictures from each side, alternating, after two of each that do not count."""
    torch.set_num_threads(threads)
    pipe = StableDiffusionPipeline.from_pretrained(str(DEMO_CHECKPOINT))
    pipe.set_progress_bar_config(disable=True)
    turns = []
    with Client(server.http) as client:
        for number in track(range(rounds + 2), description="latency against diffusers"):
            began = time.perf_counter()
            result = client.generate(PROMPT, seed=number, steps=steps, guidance=GUIDANCE)
            between = time.perf_counter()
            pipe(
                PROMPT,
                num_inference_steps=steps,
                guidance_scale=GUIDANCE,
                generator=torch.Generator("cpu").manual_seed(number),
            )
            ended = time.perf_counter()
            turns.append(Turn(1e3 * (between - began), 1e3 * (ended - between), result.info))
    return turns[2:]


def summary(turns: list[Turn]) -> dict[str, list[float]]:
    """Quartiles (lower, median, upper) of every figure."""
    return {
        "server_ms": _quartiles([t.server_ms for t in turns]),
        "diffusers_ms": _quartiles([t.diffusers_ms for t in turns]),
        "ratio": _quartiles([t.server_ms / t.diffusers_ms for t in turns]),
        "engine_ms": _quartiles([t.info.engine_ms for t in turns]),
        "outside_engines_share": _quartiles([t.outside_ms / t.server_ms for t in turns]),
        "outside_denoise_ms": _quartiles([t.server_ms - t.info.denoise_ms for t in turns]),
    }


def table(turns: list[Turn]) -> Table:
    """The summary, for people."""
    shown = Table(title=f"One picture at a time, {len(turns)} turns")
    shown.add_column("figure", no_wrap=True)
    for name in ("lower quartile", "median", "upper quartile"):
        shown.add_column(name, justify="right")
    for name, values in summary(turns).items():
        shown.add_row(name, *(f"{v:.1f}" if name.endswith("ms") else f"{v:.3f}" for v in values))
    return shown


def _quartiles(values: list[float]) -> list[float]:
    lower, middle, upper = statistics.quantiles(values, n=4, method="inclusive")
    return [round(v, 4) for v in (lower, middle, upper)]

"""Latency of single images: the server over HTTP against diffusers' pipeline in this process.

Both use the same weights, steps and number of threads, and alternate. Virtual cores may be threads
of one physical core. So before every turn a matrix product is timed with one thread and with all
threads. Figures are also given separately for turns in which the threads had separate cores.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from rich.progress import track
from rich.table import Table

from bench.calibration import shortest_s
from bench.server import DEMO_CHECKPOINT, Server
from tessera_client import Client, Info

PROMPT = "a large red circle at the left on a blue background"
GUIDANCE = 4.0


@dataclass(frozen=True)
class Turn:
    """One image from each side.

    Attributes:
        server_ms, diffusers_ms: milliseconds of each side.
        info: the server's INFO.
        scaling: speed-up by all threads just before, as a share of their number.
    """

    server_ms: float
    diffusers_ms: float
    info: Info
    scaling: float

    @property
    def own_cores(self) -> bool:
        """Whether the threads had separate cores."""
        return self.scaling >= 0.75

    @property
    def outside_ms(self) -> float:
        """Milliseconds that the client waited in addition to the time inside the engines."""
        return self.server_ms - self.info.engine_ms


def measure(server: Server, *, rounds: int, steps: int, threads: int) -> list[Turn]:
    """Measure `rounds` images from each side, alternating, after two warm-up images each."""
    torch.set_num_threads(threads)
    pipe = StableDiffusionPipeline.from_pretrained(str(DEMO_CHECKPOINT))
    pipe.set_progress_bar_config(disable=True)
    turns = []
    with Client(server.http) as client:
        for number in track(range(rounds + 2), description="latency against diffusers"):
            factor = scaling(threads)
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
            server_ms, diffusers_ms = 1e3 * (between - began), 1e3 * (ended - between)
            turns.append(Turn(server_ms, diffusers_ms, result.info, factor))
    return turns[2:]


def summary(turns: list[Turn]) -> dict[str, dict[str, Any]]:
    """Quartiles (lower, median, upper) of every figure, over all turns and over each kind of turn
    with at least three turns.
    """
    kinds = {
        "all": turns,
        "own cores": [t for t in turns if t.own_cores],
        "shared cores": [t for t in turns if not t.own_cores],
    }
    return {k: {"turns": len(t), **_figures(t)} for k, t in kinds.items() if len(t) >= 3}


def samples(turns: list[Turn]) -> list[dict[str, float]]:
    """What was measured in each turn."""
    return [
        {
            "server_ms": round(turn.server_ms, 2),
            "diffusers_ms": round(turn.diffusers_ms, 2),
            "engine_ms": round(turn.info.engine_ms, 2),
            "scaling": round(turn.scaling, 3),
        }
        for turn in turns
    ]


def _figures(turns: list[Turn]) -> dict[str, list[float]]:
    return {
        "server_ms": _quartiles([t.server_ms for t in turns]),
        "diffusers_ms": _quartiles([t.diffusers_ms for t in turns]),
        "ratio": _quartiles([t.server_ms / t.diffusers_ms for t in turns]),
        "engine_ms": _quartiles([t.info.engine_ms for t in turns]),
        "outside_engines_share": _quartiles([t.outside_ms / t.server_ms for t in turns]),
        "outside_denoise_ms": _quartiles([t.server_ms - t.info.denoise_ms for t in turns]),
        "scaling": _quartiles([t.scaling for t in turns]),
    }


def table(turns: list[Turn]) -> Table:
    """The summary as a table."""
    found = summary(turns)
    shown = Table(title="Latency of a single image: median (quartiles)")
    shown.add_column("figure", no_wrap=True)
    for kind, figures in found.items():
        shown.add_column(f"{kind}, {figures['turns']} turns", justify="right")
    for name in list(found["all"])[1:]:
        form = "{1:.1f} ({0:.1f}-{2:.1f})" if name.endswith("ms") else "{1:.3f} ({0:.3f}-{2:.3f})"
        shown.add_row(name, *(form.format(*figures[name]) for figures in found.values()))
    return shown


def scaling(threads: int) -> float:
    """Speed-up of a matrix product by all threads over one, as a share of their number."""
    one, many = (shortest_s(count) for count in (1, threads))
    return one / many / threads


def _quartiles(values: list[float]) -> list[float]:
    lower, middle, upper = statistics.quantiles(values, n=4, method="inclusive")
    return [round(v, 4) for v in (lower, middle, upper)]

"""What previews cost, and what they look like.

    python -m bench.previews [--turns 20]

`unasked` times what a tick does for a job that nobody watches. `served` makes pictures on a server
by turns: watched by nobody, by linear previews ten times a second, and by the VAE's as fast as they
come. The figure compares what could be shown at a step. Writes
`bench/results/previews.json` and `docs/images/previews.webp`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import threading
import time
import timeit
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from diffusers import DiffusionPipeline

from bench import report
from bench.server import DEMO_BUNDLE, DEMO_CHECKPOINT, ROOT, Server, serving
from tessera.codec.linear import decode_linearly
from tessera.errors import TesseraError
from tessera.manifest import read_manifest
from tessera.shared.board import Board
from tessera.shared.previews import PreviewWriter
from tessera.shared.rows import Phase
from tessera.terminal.console import Console
from tessera_client import Client

mpl.use("Agg")
import matplotlib.pyplot as plt

FIGURE = ROOT / "docs" / "images" / "previews.webp"
PROMPT = "a large red circle at the left on a blue background"
STEPS, SHOWN = 20, (1, 2, 4, 8, 12, 20)
EVERY_S = {"nobody": None, "linear": 0.1, "vae": 0.0}
console = Console()

Latents = torch.Tensor


def main() -> None:
    """Measure both, draw the figure, write the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=20)
    turns = parser.parse_args().turns
    machine = report.describe_machine(len(os.sched_getaffinity(0)))
    results = {"unasked": unasked(), "served": served(turns)}
    console.print_json(json.dumps(results))
    report.write("previews", {"turns": turns, "steps": STEPS}, results, machine=machine)
    draw()


def unasked() -> dict[str, float]:
    """Microseconds per job and tick: to see that nobody watches, and to write SDXL's latents."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        board = Board(Path(folder) / "board")
        job = board.open("j", 20)
        board.progress(*job, Phase.DENOISING, 1)
        latents = np.zeros((4, 128, 128), np.float32)
        writer = PreviewWriter(Path(folder) / "previews", places=16, floats=latents.size)
        steps = iter(range(10**9))
        return {
            "watched_us": _microseconds(lambda: board.watched(*job)),
            "write_1024_us": _microseconds(lambda: writer.write(1, next(steps), latents), 200),
        }


def _microseconds(call: Callable[[], object], number: int = 10_000) -> float:
    return round(1e6 * min(timeit.repeat(call, number=number, repeat=7)) / number, 3)


def served(turns: int) -> dict[str, dict[str, float]]:
    """By watcher: milliseconds per tick, and per answer with a preview."""
    ticks: dict[str, list[float]] = {name: [] for name in EVERY_S}
    answers: dict[str, list[float]] = {name: [] for name in EVERY_S}
    log = ROOT / "out" / "bench-previews.log"
    log.parent.mkdir(exist_ok=True)
    with serving(DEMO_BUNDLE, log) as server, Client(server.grpc) as client:
        client.generate(PROMPT, steps=STEPS)
        for turn in range(turns):
            for name, every in EVERY_S.items():
                job = f"{name}-{turn}"
                with _watching(server, job, name, every, answers[name]):
                    info = client.generate(PROMPT, steps=STEPS, seed=turn, job_id=job).info
                ticks[name].append(info.denoise_ms / info.ticks)
    nobody = ticks["nobody"]
    return {
        name: {
            **_quartiles("tick_ms", ticks[name]),
            **_quartiles("ratio", [a / b for a, b in zip(ticks[name], nobody, strict=True)]),
            **_quartiles("answer_ms", answers[name]),
            "answers": len(answers[name]),
        }
        for name in EVERY_S
    }


@contextmanager
def _watching(
    server: Server, job: str, decoder: str, every: float | None, answers: list[float]
) -> Iterator[None]:
    """Ask for previews of a job as long as the body takes."""
    over = threading.Event()

    def watch() -> None:
        with Client(server.grpc, retries=0) as client:
            while every is not None and not over.wait(every or 0.001):
                began = time.perf_counter()
                with suppress(TesseraError):
                    if client.preview(job, decoder):
                        answers.append(1e3 * (time.perf_counter() - began))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _quartiles(name: str, values: list[float]) -> dict[str, float]:
    if len(values) < 2:
        return {}
    low, middle, high = statistics.quantiles(values, n=4)
    return {name: round(middle, 3), f"{name}_q1": round(low, 3), f"{name}_q3": round(high, 3)}


@torch.inference_mode()
def draw() -> None:
    """The figure: what could be shown after some steps."""
    manifest = read_manifest(DEMO_BUNDLE)
    assert manifest.linear_decoder is not None
    pipe: Any = DiffusionPipeline.from_pretrained(DEMO_CHECKPOINT)
    pairs = _predictions(pipe)

    def linear(latents: Latents) -> Any:
        return decode_linearly(manifest.linear_decoder, latents[0].numpy())  # type: ignore[arg-type]

    def by_vae(latents: Latents) -> Any:
        image = pipe.vae.decode(latents / manifest.latents.scale).sample[0]
        return (127.5 * (image.clamp(-1, 1) + 1)).permute(1, 2, 0).numpy().astype(np.uint8)

    rows: dict[str, Callable[[Latents, Latents], Any]] = {
        "latents so far,\nlinear": lambda after, clean: linear(after),
        "prediction,\nlinear": lambda after, clean: linear(clean),
        "prediction,\nVAE": lambda after, clean: by_vae(clean),
    }
    figure, axes = plt.subplots(len(rows), len(SHOWN), figsize=(7.2, 3.9), squeeze=False)
    for line, (label, decode) in zip(axes, rows.items(), strict=True):
        for axis, step in zip(line, SHOWN, strict=True):
            axis.imshow(decode(*pairs[step - 1]))
            axis.set(xticks=[], yticks=[])
        line[0].set_ylabel(label, fontsize=8)
    for axis, step in zip(axes[0], SHOWN, strict=True):
        axis.set_title(f"step {step}", fontsize=8)
    figure.tight_layout(pad=0.4)
    figure.savefig(FIGURE, dpi=100)


def _predictions(pipe: Any) -> list[tuple[Latents, Latents]]:
    """Latents after each step, and the clean ones that its prediction amounts to (from Euler's
    formula: x' = x + (x - clean) / sigma * (sigma' - sigma)).
    """
    seen: list[Latents] = []

    def keep(pipe: Any, step: int, timestep: Any, values: dict[str, Latents]) -> dict[str, Latents]:
        seen.append(values["latents"].clone())
        return values

    generator = torch.Generator("cpu").manual_seed(7)
    start = torch.randn((1, 4, 32, 32), generator=torch.Generator("cpu").manual_seed(7))
    pipe(
        PROMPT,
        num_inference_steps=STEPS,
        guidance_scale=4.0,
        generator=generator,
        output_type="latent",
        callback_on_step_end=keep,
    )
    before = [start * pipe.scheduler.init_noise_sigma, *seen]
    sigmas = pipe.scheduler.sigmas
    return [
        (after, x - sigma * (after - x) / (following - sigma))
        for x, after, sigma, following in zip(before, seen, sigmas, sigmas[1:], strict=False)
    ]


if __name__ == "__main__":
    main()

"""What `torch.compile` brings diffusers on a CPU: pictures, also against Tessera, and UNet calls.

    python -m bench compiled [--turns 15]

The UNet is compiled for each number of rows, which is `torch.compile` at its best, in a cache of
its own. Sides take turns. Writes `bench/results/compiled.json`.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from rich.console import Console
from rich.progress import track

from bench import report
from bench.latency import GUIDANCE, PROMPT, scaling
from bench.markdown import NOT_YET, by_command, if_measured, markdown, ms, spread
from bench.sampled import quartiles_of
from bench.server import DEMO_BUNDLE, DEMO_CHECKPOINT, ROOT, serving
from bench.turns import in_turn
from tessera_client import Client

ROWS = (2, 4, 8, 16)
"""Two rows are one guided picture."""
SIDE = 32
"""Of the latents of 128 x 128 pixels."""
TOKENS = 77
TESSERA, EAGER, COMPILED = "Tessera", "eager", "compiled"
WARM = 2
"""Calls of each side that do not count."""
Samples = dict[str, list[float]]
console = Console(highlight=False)


def main() -> None:
    """Measure, print the table, write the report."""
    parser = argparse.ArgumentParser(description="torch.compile on a CPU")
    parser.add_argument("--turns", type=int, default=15, help="calls of each side")
    parser.add_argument("--steps", type=int, default=20, help="of a picture")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rows", type=int, nargs="+", default=ROWS)
    parser.add_argument("--out", type=Path, help="another file for the report")
    options = parser.parse_args()
    machine = report.describe_machine(options.threads) | {"scaling": scaling(options.threads)}
    torch.set_num_threads(options.threads)
    unet = UNet2DConditionModel.from_pretrained(DEMO_CHECKPOINT / "unet").eval()
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
        pictures = drawn(unet, options.turns, options.steps, options.threads)
        calls = [called(unet, number, options.turns) for number in options.rows]
    results = {"pictures_ms": pictures, "calls": calls}
    settings = report.settings_of(options) | {"guidance": GUIDANCE}
    file = report.write("compiled", settings, results, machine=machine, out=options.out)
    console.print(_table(results))
    console.print(f"written: {file}")


def drawn(unet: UNet2DConditionModel, turns: int, steps: int, threads: int) -> Samples:
    """Milliseconds of a picture of 128 x 128 from each side."""
    eager = StableDiffusionPipeline.from_pretrained(str(DEMO_CHECKPOINT), unet=unet)
    parts = {**eager.components, "unet": torch.compile(unet, dynamic=False)}
    faster = StableDiffusionPipeline(**parts, requires_safety_checker=False)
    log = ROOT / "out" / "bench-compiled.log"
    log.parent.mkdir(exist_ok=True)
    with (
        serving(DEMO_BUNDLE, log, f"--threads={threads}") as server,
        Client(server.http, timeout=300) as client,
    ):

        def tessera(seed: int) -> object:
            return client.generate(PROMPT, seed=seed, steps=steps, guidance=GUIDANCE)

        sides: dict[str, Callable[[int], object]] = {TESSERA: tessera}
        for name, pipe in ((EAGER, eager), (COMPILED, faster)):
            pipe.set_progress_bar_config(disable=True)
            sides[name] = partial(_draw, pipe, steps)
        return _in_turns(sides, turns, "pictures")


def _draw(pipe: StableDiffusionPipeline, steps: int, seed: int) -> object:
    generator = torch.Generator("cpu").manual_seed(seed)
    options = {"num_inference_steps": steps, "guidance_scale": GUIDANCE}
    return pipe(PROMPT, generator=generator, **options)


def called(unet: UNet2DConditionModel, rows: int, turns: int) -> dict[str, Any]:
    """Milliseconds of the UNet's calls with so many rows, what compiling took, and how far outputs
    are apart.
    """
    inputs, compiled = _inputs(unet.config, rows), torch.compile(unet, dynamic=False)
    began = time.perf_counter()
    _output(compiled, inputs)
    first_s = time.perf_counter() - began
    sides: dict[str, Callable[[int], object]] = {
        EAGER: lambda number: _output(unet, inputs),
        COMPILED: lambda number: _output(compiled, inputs),
    }
    apart = _output(unet, inputs) - _output(compiled, inputs)
    return {
        "rows": rows,
        "first_call_s": round(first_s, 1),
        "largest_difference": float(apart.abs().max()),
        "samples_ms": _in_turns(sides, turns, f"{rows} rows"),
    }


def _in_turns(sides: Mapping[str, Callable[[int], object]], turns: int, what: str) -> Samples:
    samples: Samples = {name: [] for name in sides}
    for number in track(range(turns + WARM), what, console=console, transient=True):
        for name in in_turn(list(sides), number):
            began = time.perf_counter()
            sides[name](number)
            samples[name].append(round(1e3 * (time.perf_counter() - began), 2))
    return {name: of[WARM:] for name, of in samples.items()}


def _inputs(config: Any, rows: int) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(rows)
    sample = torch.randn(rows, config.in_channels, SIDE, SIDE, generator=generator)
    text = torch.randn(rows, TOKENS, config.cross_attention_dim, generator=generator)
    return sample, torch.tensor(500.0), text


@torch.inference_mode()
def _output(unet: Callable[..., Any], inputs: tuple[torch.Tensor, ...]) -> torch.Tensor:
    output: torch.Tensor = unet(*inputs, return_dict=False)[0]
    return output


def table() -> str:
    """Pictures, and calls by the number of rows."""
    if (content := if_measured("compiled")) is None:
        return NOT_YET.format("compiled")
    return by_command(content, _table(content["results"]))


def _table(results: Mapping[str, Any]) -> str:
    pictures = results["pictures_ms"]
    ours = ms(quartiles_of(pictures[TESSERA])[1])
    rows = [["a picture", ours, *_compared(pictures), _ratio(pictures, TESSERA, COMPILED), ""]]
    for of in results["calls"]:
        took = f"{of['first_call_s']:.0f} s"
        rows.append([f"UNet, {of['rows']} rows", "", *_compared(of["samples_ms"]), "", took])
    head = ("what", TESSERA, "diffusers, eager", "diffusers, compiled")
    ratios = ("compiled / eager", "Tessera / compiled", "the first call")
    return markdown((*head, *ratios), rows)


def _compared(samples: Mapping[str, Sequence[float]]) -> list[str]:
    """Medians of both sides of diffusers, and their ratio."""
    medians = [ms(quartiles_of(samples[name])[1]) for name in (EAGER, COMPILED)]
    return [*medians, _ratio(samples, COMPILED, EAGER)]


def _ratio(samples: Mapping[str, Sequence[float]], one: str, other: str) -> str:
    """Of two sides, within a turn."""
    pairs = zip(samples[one], samples[other], strict=True)
    return spread(quartiles_of([a / b for a, b in pairs]), 2)


if __name__ == "__main__":
    main()

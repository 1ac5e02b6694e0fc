"""`make demo`: starts a Triton server on the demo bundle, generates and edits images, prints their
times, and stops the server.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image
from rich.table import Table

from bench.pictures import Tile, sheet
from bench.server import DEMO_BUNDLE, ROOT, SHARED, serving
from tessera.terminal.console import Console, new_table
from tessera_build.demo.controls import CONTROLS
from tessera_build.demo.scenes import Scene, describe_shapes, held_out_scenes
from tessera_client import Client, Control, JobStatus, Lora, Result

OUT = ROOT / "out" / "demo"
PROMPTS = (
    "a large red circle at the left on a blue background",
    "a small yellow star at the top on a purple background",
    "a large green square in the center on a striped white background",
    "a medium blue triangle at the right on a yellow background",
    "a large purple star in the center on a checkered green background",
    "a large white cross at the bottom on a dotted red background",
    "a medium orange diamond at the left and a small blue circle at the right on a white "
    "background",
    "a small black square at the top left and a large red triangle at the bottom right on a "
    "striped green background",
)
SCHEDULERS = ("euler", "ddim", "dpmpp_2m_karras", "unipc")
CAPTIONS = {"ddim": "ddim (takes the same steps as euler)"}
EDIT_PROMPT = "a large yellow star at the left on a blue background"
LORAS = (
    (),
    (Lora("outline"),),
    (Lora("halved"),),
    (Lora("night"),),
    (Lora("outline"), Lora("night")),
)
CONTROL_SCENES = (2, 7)
"""Held-out scenes from which the control images are made."""
EDITS = (("dense", 5), ("sparse", 5), ("sparse", 6))
console = Console()


def main() -> None:
    """Run all parts of the demo."""
    OUT.mkdir(parents=True, exist_ok=True)
    console.rule("Tessera")
    with contextlib.ExitStack() as stack:
        with console.doing("starting Triton Inference Server on the demo bundle ..."):
            server = stack.enter_context(serving(DEMO_BUNDLE, OUT / "server.log", SHARED))
        console.say(f"the server is ready on {server.http} (its log: {_shown(server.log)})")
        client = stack.enter_context(Client(server.http))
        table = times_table()
        alone = _alone(client, table)
        together = _together(client, table)
        schedulers = _schedulers(client, table)
        loras = _loras(client, table)
        controls = _controls(client, table)
        edits = _edits(client, table, alone)
        console.say("stopping the server ...")
    _save("generate", "Text to image: eight requests, one running batch", together, columns=4)
    _save("schedulers", "One seed, four schedulers", schedulers, columns=4)
    _save("loras", "The same requests with LoRAs: one, or two at once", loras, columns=len(LORAS))
    _save(
        "controls",
        "ControlNets: the prompt has shapes and colours, the control image positions and sizes",
        controls,
        columns=6,
    )
    _save("edits", "One image, edited inside a mask", edits, columns=4)
    alone.image.save(OUT / "first.png")
    console.print(table)


def _alone(client: Client, table: Table) -> Result:
    """One request, with its progress."""
    with console.bar() as bar:
        task = bar.add_task("one picture", total=None)

        def report(status: JobStatus) -> None:
            bar.update(task, completed=status.step, total=status.total)

        result = client.generate(PROMPTS[0], seed=1, on_progress=report)
        bar.update(task, completed=result.info.steps, total=result.info.steps)
    add_times(table, "one picture", [result], result.info.total_ms)
    return result


def _together(client: Client, table: Table) -> list[Tile]:
    """Requests that arrive shortly after each other and share the running batch."""
    began = time.perf_counter()
    results: list[Result] = []
    with console.bar() as bar, ThreadPoolExecutor(len(PROMPTS)) as pool:
        jobs = []
        for number, prompt in enumerate(PROMPTS):
            jobs.append(pool.submit(client.generate, prompt, seed=number + 1))
            time.sleep(0.05)
        for job in bar.track(jobs, description="eight at once"):
            results.append(job.result())
    add_times(table, "eight at once", results, 1e3 * (time.perf_counter() - began))
    return [
        Tile(r.image, p, f"{r.info.total_ms:.0f} ms, in batches of {r.info.mean_batch:.1f}")
        for p, r in zip(PROMPTS, results, strict=True)
    ]


def _schedulers(client: Client, table: Table) -> list[Tile]:
    """The same request with several schedulers."""
    tiles = []
    with console.bar() as bar:
        for name in bar.track(SCHEDULERS, description="schedulers"):
            result = client.generate(PROMPTS[4], seed=2, scheduler=name)
            add_times(table, name, [result], result.info.total_ms)
            caption = CAPTIONS.get(name, name)
            tiles.append(Tile(result.image, caption, f"{result.info.total_ms:.0f} ms"))
    return tiles


def _loras(client: Client, table: Table) -> list[Tile]:
    """Two prompts without LoRAs, with each LoRA, and with two LoRAs, all at the same time."""
    wanted = [(prompt, chosen) for prompt in PROMPTS[4:6] for chosen in LORAS]
    began = time.perf_counter()
    with console.bar() as bar, ThreadPoolExecutor(len(wanted)) as pool:
        jobs = [pool.submit(client.generate, p, seed=3, loras=chosen) for p, chosen in wanted]
        results = [job.result() for job in bar.track(jobs, description="LoRAs")]
    add_times(table, "ten with LoRAs", results, 1e3 * (time.perf_counter() - began))
    return [
        Tile(
            result.image,
            " and ".join(lora.name for lora in chosen) or "without",
            f"{result.info.total_ms:.0f} ms, {result.info.refit_ms:.0f} of them refits",
        )
        for (_, chosen), result in zip(wanted, results, strict=True)
    ]


def _controls(client: Client, table: Table) -> list[Tile]:
    """Two rows: the control images of a scene, and the results with each, with both, and with a
    LoRA. The prompt has only shapes and colours, not positions and sizes.
    """
    scenes = held_out_scenes(max(CONTROL_SCENES) + 1)
    chosen = [scenes[i] for i in CONTROL_SCENES]
    wanted = [(scene, *way) for scene in chosen for way in _guided(scene)]
    began = time.perf_counter()
    with console.bar() as bar, ThreadPoolExecutor(len(wanted)) as pool:
        jobs = [
            pool.submit(client.generate, describe_shapes(scene), seed=4, controls=uses, loras=loras)
            for scene, _, uses, loras in wanted
        ]
        results = [job.result() for job in bar.track(jobs, description="ControlNets")]
    add_times(table, "eight with ControlNets", results, 1e3 * (time.perf_counter() - began))
    made = [
        Tile(result.image, f"{describe_shapes(scene)}, {caption}", f"{result.info.total_ms:.0f} ms")
        for (scene, caption, *_), result in zip(wanted, results, strict=True)
    ]
    ways, tiles = len(wanted) // len(chosen), list[Tile]()
    for row, scene in enumerate(chosen):
        tiles += [Tile(image, f"control image: {n}") for n, image in _images(scene).items()]
        tiles += made[row * ways : (row + 1) * ways]
    return tiles


def _guided(scene: Scene) -> list[tuple[str, list[Control], list[Lora]]]:
    """Combinations of ControlNets and LoRAs for a scene, with captions."""
    one = {name: Control(name, image) for name, image in _images(scene).items()}
    both = [Control(name, image, scale=0.75) for name, image in _images(scene).items()]
    alone = [(f"with {name}", [control], list[Lora]()) for name, control in one.items()]
    return [
        *alone,
        ("with both at a scale of 0.75", both, []),
        ("with edges and the LoRA night", [one["edges"]], [Lora("night")]),
    ]


def _images(scene: Scene) -> dict[str, Image.Image]:
    return {name: Image.fromarray(make(scene)) for name, make in CONTROLS.items()}


def _edits(client: Client, table: Table, before: Result) -> list[Tile]:
    """The first image, edited inside a mask: densely, then with its recorded activations."""
    mask = np.zeros((before.image.height, before.image.width), np.uint8)
    mask[32:96, 8:72] = 255
    client.register_template(before.image)
    tiles = [Tile(before.image, PROMPTS[0], "before")]
    with console.bar() as bar:
        for mode, seed in bar.track(EDITS, description="edits"):
            result = client.edit(before.image, mask, EDIT_PROMPT, mode=mode, seed=seed)
            add_times(table, f"{mode} edit", [result], result.info.total_ms)
            note = f"{result.info.mode}, {result.info.total_ms:.0f} ms"
            tiles.append(Tile(result.image, EDIT_PROMPT, note))
    return tiles


def times_table() -> Table:
    """The heading of a table that fits 80 columns."""
    numbers = ("encode", "queue", "denoise", "decode", "each", "batch", "wall")
    title = "Milliseconds at the server (means)"
    return new_table("request", *numbers, title=title, numbers=numbers)


def add_times(table: Table, name: str, results: Sequence[Result], wall_ms: float) -> None:
    """A row of it: means of some requests, and how long all of them took together."""
    fields = ("encode_ms", "queue_ms", "denoise_ms", "decode_ms", "total_ms")
    means = [sum(getattr(r.info, f) for r in results) / len(results) for f in fields]
    batch = sum(r.info.mean_batch for r in results) / len(results)
    table.add_row(name, *(f"{m:.0f}" for m in means), f"{batch:.1f}", f"{wall_ms:.0f}")


def _save(name: str, title: str, tiles: Sequence[Tile], *, columns: int) -> None:
    path = OUT / f"{name}.png"
    sheet(title, tiles, columns=columns).save(path)
    console.say(f"{_shown(path)}: {title}")


def _shown(path: Path) -> Path:
    return path.relative_to(ROOT)


if __name__ == "__main__":
    main()

"""The cost of ControlNets to a tick in addition to their own time, on the real server.

`overlap` uses stand-ins of known duration. A tick should take max(encoder half, slowest ControlNet)
+ decoder half. The UNet has one thread, so that on a machine with two cores the other one is free
for calls, as on a machine with GPUs. `transfer` sends residuals of Stable Diffusion XL's true sizes
between two model processes. Writes `bench/results/controls.json` and a figure of one tick.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import statistics
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import tritonclient.http as triton
from rich.console import Console
from rich.progress import track
from rich.table import Table

from bench import report
from bench.plots import save
from bench.server import DEMO_BUNDLE, ROOT, Server, plain_serving
from tessera.controls.models import write_models
from tessera.manifest import CONTROLNET, HINT, read_manifest, write_manifest
from tessera.networks import graphs
from tessera.networks.walk import program_of
from tessera.serve.tritonserver import model_repository
from tessera.sparse.tables import level_sizes
from tessera_client import Client, Control
from tests.fakes.true_configs import CONFIGS

mpl.use("Agg")
import matplotlib.pyplot as plt

FIGURE = ROOT / "docs" / "images" / "controls_tick.webp"
LOG = ROOT / "out" / "bench-controls.log"
SLEEPS = (40, 60, 80)
STEPS, REQUESTS = 20, 6
console = Console(highlight=False)

Event = dict[str, Any]


def main() -> None:
    """Measure both, print the tables, write the report and the figure."""
    LOG.parent.mkdir(exist_ok=True)
    machine = report.describe_machine(len(os.sched_getaffinity(0)))
    overlapped, events = overlap()
    console.print(_overlap_table(overlapped))
    draw_tick(_middle_tick(events))
    sent = transfer()
    console.print(_transfer_table(sent))
    settings = {"sleeps_ms": SLEEPS, "steps": STEPS, "requests": REQUESTS}
    results = {"overlap": overlapped, "transfer": sent}
    file = report.write("controls", settings, results, machine=machine)
    console.print(f"written: {file.relative_to(ROOT)}, {FIGURE.relative_to(ROOT)}")


def overlap() -> tuple[list[dict[str, float]], list[Event]]:
    """Medians over ticks for zero to three ControlNets, and the events of the last run."""
    found, events = [], list[Event]()
    with tempfile.TemporaryDirectory() as folder:
        bundle, repository = Path(folder) / "bundle", Path(folder) / "models"
        config = json.loads(
            (DEMO_BUNDLE / read_manifest(DEMO_BUNDLE).graphs["unet_encoder"].config).read_text()
        )
        numbers = sum(c * h * w for c, h, w in residual_shapes(config, (32, 32)))
        sleepers = [f"sleep{ms}" for ms in SLEEPS]
        _bundle_with(sleepers, bundle)
        write_models(repository, sleepers, {})
        for name in sleepers:
            _stand_in(repository / f"{CONTROLNET}{name}", "sleeper", numbers=str(numbers))
        traced = Path(folder) / "trace.json"
        variables = {"TESSERA_BUNDLE": str(bundle), "TESSERA_THREADS": "1"}
        variables |= {"TESSERA_BOARD": f"{folder}/board", "TESSERA_TRACE": str(traced)}
        repositories = [model_repository(), repository]
        with plain_serving(repositories, LOG, explicit=True, **variables) as server:
            for count in track(range(len(SLEEPS) + 1), description="overlap"):
                events = _ticks(server, traced, sleepers[:count])
                found.append(_summary(events, SLEEPS[:count]))
    return found, events


def _ticks(server: Server, traced: Path, names: list[str]) -> list[Event]:
    """Trace events of some consecutive requests with these ControlNets."""
    picture = np.zeros((128, 128, 3), np.uint8)
    controls = [Control(name, picture) for name in names]
    with Client(server.http) as client:
        client.generate("a", steps=2, controls=controls)
        before = len(traced.read_text())
        for seed in range(REQUESTS):
            client.generate("a red circle", seed=seed, steps=STEPS, controls=controls)
    lines = traced.read_text()[before:].rstrip().rstrip(",")
    events: list[Event] = json.loads(f"[{lines}]")
    return [event for event in events if event["ph"] == "X"]


def _summary(events: list[Event], sleeps: tuple[int, ...]) -> dict[str, float]:
    """Medians over ticks in milliseconds. `excess_ms` is the time of a tick minus the decoder half
    and minus the longer of encoder half and slowest ControlNet.
    """
    every = [_parts(events, tick) for tick in events if tick["name"] == "tick"]
    ticks = [tick for tick in every if "decoder half" in tick]
    slowest = max(sleeps, default=0)
    excess = [t["tick"] - max(t["encoder half"], slowest) - t["decoder half"] for t in ticks]
    medians = {
        f"{name.replace(' ', '_')}_ms": round(statistics.median(t[name] for t in ticks), 2)
        for name in ("tick", "encoder half", "decoder half")
    }
    low, middle, high = statistics.quantiles(excess, n=4, method="inclusive")
    spread = {"excess_low_ms": round(low, 2), "excess_high_ms": round(high, 2)}
    together = {"sum_ms": float(sum(sleeps)), "slowest_ms": float(slowest)}
    return {
        "controlnets": len(sleeps),
        **together,
        **medians,
        "excess_ms": round(middle, 2),
        **spread,
    }


def _parts(events: list[Event], tick: Event) -> dict[str, float]:
    """Milliseconds of a tick and of the spans inside it, on the tick's thread."""
    inside = [
        e
        for e in events
        if e["tid"] == tick["tid"] and tick["ts"] <= e["ts"] <= tick["ts"] + tick["dur"]
    ]
    return {e["name"]: e["dur"] / 1e3 for e in inside}


def _middle_tick(events: list[Event]) -> list[Event]:
    """The events of the tick with the median duration, including those of other processes."""
    ticks = [e for e in events if e["name"] == "tick"]
    tick = sorted(ticks, key=lambda e: e["dur"])[len(ticks) // 2]
    end = tick["ts"] + tick["dur"]
    return [e for e in events if tick["ts"] <= e["ts"] and e["ts"] + e["dur"] <= end]


def draw_tick(events: list[Event]) -> None:
    """Draw bars over time: a row for the tick's thread, and a row for each ControlNet."""
    start = min(e["ts"] for e in events)
    asked = sorted(e["name"] for e in events if e["name"].startswith("ControlNet"))
    sleeps = sorted((e for e in events if e["name"] == "asleep"), key=lambda e: e["dur"])
    figure, axes = plt.subplots(figsize=(9, 2.6))
    colours = {"encoder half": "C0", "join": "lightgrey", "decoder half": "C2"}
    for event in events:
        begin, took = (event["ts"] - start) / 1e3, event["dur"] / 1e3
        if event["name"] in colours:
            axes.barh("denoise", took, left=begin, color=colours[event["name"]])
            axes.text(begin + took / 2, "denoise", event["name"], ha="center", va="center", size=8)
        elif event["name"] in asked:
            axes.barh(event["name"], took, left=begin, color="bisque")
    for name, event in zip(asked, sleeps, strict=True):
        axes.barh(
            name, event["dur"] / 1e3, left=(event["ts"] - start) / 1e3, color="C1", height=0.5
        )
    axes.invert_yaxis()
    axes.set_xlabel("ms since the tick began (dark: the stand-in; light: its whole call)")
    figure.tight_layout()
    save(figure, FIGURE)
    plt.close(figure)


def transfer() -> list[dict[str, float]]:
    """Residuals of one step of SDXL at 1024 x 1024: medians over calls."""
    shapes = residual_shapes(CONFIGS["sdxl"]["unet"], (128, 128))
    found = []
    for rows in (1, 2):
        numbers = rows * sum(c * h * w for c, h, w in shapes)
        with tempfile.TemporaryDirectory() as folder:
            repository = Path(folder)
            for i in range(3):
                _write_plain(repository / f"sender{i}", "sender", _SENDER, numbers=str(numbers))
            _write_plain(repository / "receiver", "receiver", _RECEIVER)
            board = f"{folder}/board"
            with plain_serving(
                [repository], LOG, TESSERA_BUNDLE=str(DEMO_BUNDLE), TESSERA_BOARD=board
            ) as server:
                for calls in (1, 2, 3):
                    found.append(_transfers(server, shapes, rows, calls))
    return found


def _transfers(
    server: Server, shapes: list[tuple[int, int, int]], rows: int, calls: int
) -> dict[str, float]:
    wanted = json.dumps({"shapes": shapes, "rows": rows, "calls": calls}).encode()
    given = triton.InferInput("WANTED", [1, 1], "BYTES")
    given.set_data_from_numpy(np.array([[wanted]], object))
    times = []
    with contextlib.closing(
        triton.InferenceServerClient(f"localhost:{server.http_port}", network_timeout=120)
    ) as client:
        for _ in range(12):
            answer = client.infer("receiver", [given]).as_numpy("TIMES")
            times.append(json.loads(answer.reshape(-1)[0]))
    warm = times[2:]
    megabytes = 4e-6 * rows * sum(c * h * w for c, h, w in shapes)
    return {
        "rows": rows,
        "controlnets": calls,
        "mb_each": round(megabytes, 1),
        "first_call_ms": round(times[0]["call_ms"], 1),
        **{
            name: round(statistics.median(t[name] for t in warm), 1)
            for name in ("call_ms", "add_ms")
        },
    }


def residual_shapes(config: Mapping[str, Any], size: tuple[int, int]) -> list[tuple[int, int, int]]:
    """(c, h, w) of each residual of a ControlNet for a UNet of that configuration."""
    program = program_of(graphs.new_network("unet", dict(config)))
    sizes = level_sizes(size, program.paddings)
    return [(width, *sizes[level]) for level, width in program.residuals.values()]


def _bundle_with(names: list[str], folder: Path) -> None:
    """The demo bundle with additional ControlNets, which stand-ins will serve."""
    manifest = read_manifest(DEMO_BUNDLE)
    folder.mkdir()
    for entry in DEMO_BUNDLE.iterdir():
        if entry.name != "bundle.json":
            (folder / entry.name).symlink_to(entry)
    graph = manifest.graphs["vae_encoder"]  # any graph: it is never opened
    more = {f"{CONTROLNET}{name}{end}": graph for name in names for end in ("", HINT)}
    write_manifest(folder, dataclasses.replace(manifest, graphs={**manifest.graphs, **more}))


def _stand_in(model: Path, kind: str, **parameters: str) -> None:
    """Replace a model's code by a stand-in's."""
    code = (
        f"from bench.standins.{kind} import TritonPythonModel\n\n__all__ = ['TritonPythonModel']\n"
    )
    (model / "1" / "model.py").write_text(code)
    with (model / "config.pbtxt").open("a") as config:
        for key, value in parameters.items():
            config.write(f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}\n')


_SENDER = """\
backend: "python"
max_batch_size: 1
input [ { name: "KEYS", data_type: TYPE_INT64, dims: [ -1 ] } ]
output [ { name: "RESIDUALS", data_type: TYPE_FP32, dims: [ -1 ] } ]
instance_group [ { count: 1, kind: KIND_CPU } ]
"""
_RECEIVER = """\
backend: "python"
max_batch_size: 1
input [ { name: "WANTED", data_type: TYPE_STRING, dims: [ 1 ] } ]
output [ { name: "TIMES", data_type: TYPE_STRING, dims: [ 1 ] } ]
instance_group [ { count: 1, kind: KIND_CPU } ]
"""


def _write_plain(model: Path, kind: str, config: str, **parameters: str) -> None:
    (model / "1").mkdir(parents=True)
    (model / "config.pbtxt").write_text(config)
    _stand_in(model, kind, **parameters)


def _overlap_table(found: list[dict[str, float]]) -> Table:
    table = Table(title="A tick with ControlNets of known duration (median ms)")
    names = ("controlnets", "slowest_ms", "sum_ms", "encoder_half_ms", "decoder_half_ms", "tick_ms")
    for name in (*names, "excess_ms"):
        table.add_column(name.removesuffix("_ms").replace("_", " "), justify="right")
    for row in found:
        spread = f"{row['excess_ms']} ({row['excess_low_ms']}-{row['excess_high_ms']})"
        table.add_row(*(f"{row[name]:g}" for name in names), spread)
    return table


def _transfer_table(found: list[dict[str, float]]) -> Table:
    table = Table(title="Transfer of SDXL's residuals at 1024 x 1024 between processes (medians)")
    for name in found[0]:
        table.add_column(name.replace("_", " "), justify="right")
    for row in found:
        table.add_row(*(f"{value:g}" for value in row.values()))
    return table


if __name__ == "__main__":
    main()

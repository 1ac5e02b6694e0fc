"""A trace against Tessera, and against a Triton Python model around diffusers' pipelines.

    python -m bench baselines [--scenario mixed] [--requests 24] [--shares 0.8] [--equal 0.8]

The baseline (`bench/baseline_model.py`) is served by the same tritonserver, with the same weights
and threads: one request at a time, and with Triton's dynamic batcher. Its LoRAs are loaded and
fused when a request has others than the one before. ControlNets are in the pipeline. A further side
is Tessera with static batches (`bench.ablated_models`).

A side's capacity is what it draws when all requests are sent at once. Then the trace is sent
open-loop at shares of each side's own capacity, and at rates that are equal for all: shares of the
slowest one's capacity. Sides run one after the other, alone. Writes
`bench/results/baselines.json` and `docs/images/baselines.png`, of other scenarios than `mixed`
`baselines_SCENARIO.json`.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.http as triton
from rich.console import Console

from bench import report, trace
from bench.latency import scaling
from bench.replay import add_workload, draw, replay, samples, summary, table, workload_of
from bench.senders import GUIDANCE, Things, by_client, prepare, tessera
from bench.server import DEMO_CHECKPOINT, ROOT, plain_serving
from bench.trace import Asked
from tessera_client import Client

FOLDER = ROOT / "out" / "bench-baselines"
CONTROLNETS = DEMO_CHECKPOINT.parent / "controlnets"
FIGURE = ROOT / "docs" / "images" / "baselines.png"
MODEL = "diffusers_pipeline"
BATCHES = {"one at a time": 1, "static batches": 8}
"""Requests in a batch of each baseline at most."""
DELAY_US = 100_000
"""How long the dynamic batcher waits for more of them."""
Side = Callable[[Asked], Any]
console = Console(highlight=False)


def main() -> None:
    """Measure, print the tables, write the report."""
    options = _options()
    machine = report.describe_machine(options.threads) | {"scaling": scaling(options.threads)}
    things = prepare(FOLDER, options.loras, options.templates)
    requests = trace.make(options.requests, workload_of(options, 1.0))
    capacity, runs = {}, {}
    for name, opened in _sides(things, requests, options.threads):
        with opened as send:
            capacity[name] = _capacity(requests, send)
            console.print(f"{name}: {capacity[name]:.2f} pictures/s, all sent at once")
            for share in options.shares:
                rate = share * capacity[name]
                runs[f"{name}, {share:g} of its capacity"] = _run(requests, rate, send, options)
    slowest = min(capacity.values())
    for name, opened in _sides(things, requests, options.threads):
        with opened as send:
            for share in options.equal:
                label = label_of_equal(name, share, options.equal)
                runs[label] = _run(requests, share * slowest, send, options)
    results = {
        "capacity": capacity,
        "difference": _difference(things, options.threads),
        "runs": runs,
    }
    console.print(table({name: found["summary"] for name, found in runs.items()}))
    console.print(f"pictures/s, all at once: {capacity}; difference {results['difference']}/255")
    if options.scenario == "mixed":
        draw(
            {n: [s["latency_s"] for s in r["samples"] if not s["error"]] for n, r in runs.items()},
            options.figure,
        )
    settings = vars(options) | {"delay_us": DELAY_US, "batches": BATCHES}
    out, _ = settings.pop("out"), settings.pop("figure")
    file = report.write(report_of(options.scenario), settings, results, machine=machine, out=out)
    console.print(f"written: {file}")


def report_of(scenario: str) -> str:
    """The report's name."""
    return "baselines" if scenario == "mixed" else f"baselines_{scenario}"


def label_of_equal(name: str, share: float, shares: Sequence[float]) -> str:
    """A side's run at a rate that all sides get."""
    return f"{name}, one rate for all" + (f", {share:g}" if len(shares) > 1 else "")


def _run(
    requests: Sequence[Asked], rate: float, send: Side, options: argparse.Namespace
) -> dict[str, Any]:
    timed = trace.at_rate(requests, rate)
    console.print(f"the trace at {rate:.2f} requests/s, for {timed[-1].at:.0f} s")
    found = replay(timed, send)
    figures = {"rate": round(rate, 4), **summary(found, options.deadline)}
    return {"summary": figures, "samples": samples(found)}


def _sides(
    things: Things, requests: Sequence[Asked], threads: int
) -> Iterator[tuple[str, contextlib.AbstractContextManager[Side]]]:
    """Each side's server, not yet started."""
    yield "Tessera", _tessera(things, requests, threads)
    static = ("bench.ablated_server", "static")
    yield "Tessera, static batches", _tessera(things, requests, threads, static)
    for name, batch in BATCHES.items():
        yield name, _baseline(things, threads, batch)


@contextlib.contextmanager
def _tessera(
    things: Things,
    requests: Sequence[Asked],
    threads: int,
    program: Sequence[str] = ("tessera.serve",),
) -> Iterator[Side]:
    with (
        tessera(things, requests, FOLDER, threads, program=program) as server,
        by_client(server.grpc, things) as send,
    ):
        yield send


@contextlib.contextmanager
def _baseline(things: Things, threads: int, batch: int) -> Iterator[Side]:
    """A baseline's server, after a picture of each kind."""
    with tempfile.TemporaryDirectory() as folder:
        write_repository(Path(folder), threads=threads, batch=batch)
        with plain_serving([Path(folder)], FOLDER / f"baseline-{batch}.log") as server:

            def send(asked: Asked) -> None:
                by_triton(server.http_port, things, asked)

            for kind in (Asked(0, 1, 1), Asked(0, 1, 1, loras=(0,)), Asked(0, 1, 1, controls=(0,))):
                send(kind)
            send(Asked(0, 1, 1, template=0, mask=0.2))
            yield send


def write_repository(folder: Path, *, threads: int, batch: int) -> None:
    """The baseline's model repository.

    Args:
        folder: where it is written.
        threads: of torch.
        batch: requests in a batch at most; with 1 they are drawn one by one.
    """
    version = folder / MODEL / "1"
    version.mkdir(parents=True)
    shutil.copy(ROOT / "bench" / "baseline_model.py", version / "model.py")
    parameters = {
        "checkpoint": DEMO_CHECKPOINT,
        "controlnets": CONTROLNETS,
        "adapters": FOLDER / "adapters",
        "threads": threads,
    }
    lines = [
        f'parameters {{ key: "{k}" value: {{ string_value: "{v}" }} }}'
        for k, v in parameters.items()
    ]
    batching = f"dynamic_batching {{ max_queue_delay_microseconds: {DELAY_US} }}"
    (folder / MODEL / "config.pbtxt").write_text(
        "\n".join([_CONFIG % batch, *lines, batching if batch > 1 else ""])
    )


_CONFIG = """backend: "python"
max_batch_size: %d
input [
  { name: "REQUEST", data_type: TYPE_STRING, dims: [ 1 ] },
  { name: "IMAGE", data_type: TYPE_UINT8, dims: [ -1, -1, 3 ], optional: true },
  { name: "MASK", data_type: TYPE_UINT8, dims: [ -1, -1 ], optional: true },
  { name: "HINT", data_type: TYPE_UINT8, dims: [ -1, -1, 3 ], optional: true }
]
output [ { name: "PICTURE", data_type: TYPE_UINT8, dims: [ -1, -1, 3 ] } ]
instance_group [ { count: 1, kind: KIND_CPU } ]"""


def by_triton(port: int, things: Things, asked: Asked) -> Any:
    """Have a baseline draw a request; returns the picture (h, w, 3).

    Raises:
        RuntimeError: it failed.
    """
    names = {"loras": things.loras, "controls": things.controls}
    request = {
        "prompt": things.prompt,
        "steps": asked.steps,
        "seed": asked.seed,
        "guidance": GUIDANCE,
        **{field: [known[i] for i in getattr(asked, field)] for field, known in names.items()},
    }
    arrays: dict[str, Any] = {"REQUEST": np.array([json.dumps(request).encode()], object)}
    if asked.template is not None:
        arrays |= {"IMAGE": things.pictures[asked.template], "MASK": things.mask(asked.mask)}
    if asked.controls:
        arrays["HINT"] = np.asarray(things.hint)
    inputs = []
    for name, array in arrays.items():
        kind = "BYTES" if name == "REQUEST" else "UINT8"
        inputs.append(triton.InferInput(name, [1, *array.shape], kind))
        inputs[-1].set_data_from_numpy(array[None])
    client = triton.InferenceServerClient(f"localhost:{port}", network_timeout=900)
    with contextlib.closing(client):
        try:
            return client.infer(MODEL, inputs).as_numpy("PICTURE")[0]
        except triton.InferenceServerException as error:
            raise RuntimeError(str(error)) from error


def _capacity(requests: Sequence[Asked], send: Side) -> float:
    """Pictures a second, if all requests are there at once."""
    found = replay([dataclasses.replace(asked, at=0.0) for asked in requests], send)
    rate: float = summary(found, deadline=0.0)["pictures_per_s"]
    return rate


def _difference(things: Things, threads: int) -> int:
    """The largest difference of one picture, of 255: both sides do the same work."""
    asked = Asked(0.0, 8, 1)
    with tempfile.TemporaryDirectory() as folder:
        write_repository(Path(folder), threads=threads, batch=1)
        with plain_serving([Path(folder)], FOLDER / "baseline.log") as server:
            other = by_triton(server.http_port, things, asked)
    with (
        tessera(things, [], FOLDER, threads) as server,
        Client(server.grpc, timeout=900) as client,
    ):
        result = client.generate(things.prompt, steps=asked.steps, seed=1, guidance=GUIDANCE)
    return int(np.abs(np.asarray(result.image, np.int16) - other).max())


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="a trace against baselines")
    add_workload(parser, requests=24)
    parser.add_argument("--shares", type=float, nargs="+", default=[0.8], help="of a capacity")
    parser.add_argument("--equal", type=float, nargs="+", default=[0.8], help="of the slowest's")
    parser.add_argument("--out", type=Path, help="another file")
    parser.add_argument("--figure", type=Path, default=FIGURE)
    return parser.parse_args()


if __name__ == "__main__":
    main()

"""What a fleet's parts cost: a look at a request, a choice, telling and reading the load.

    python -m bench fleet-cost [--rounds 60]

Needs no server. Writes `bench/results/fleet_cost.json`.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from rich.console import Console

from bench import report
from bench.markdown import spread
from bench.sampled import quartiles_of
from tessera.shared import load as shared
from tessera_gateway.fleet import wire
from tessera_gateway.fleet.book import Book
from tessera_gateway.fleet.load import Defaults, Lines, Load, Recorded, Running, read_load
from tessera_gateway.fleet.peek import Peek, peek_grpc

RUNNING, RECORDINGS, KEPT = 8, 512, 20
LINES = Lines((0.0, 0.06), (12.0, 0.09))
PUBLISH, READ, ANSWER = (
    f"{what} ({RUNNING} requests, {RECORDINGS} recordings)"
    for what in ("publish the load", "read what was published", "read a worker's answer")
)
_LATER_S = 1e6
"""Nothing that was told is too old."""
console = Console(highlight=False)


def main() -> None:
    """Measure, print, write the report."""
    parser = argparse.ArgumentParser(description="what a fleet's parts cost")
    parser.add_argument("--rounds", type=int, default=60, help="of each measurement")
    parser.add_argument("--out", type=Path, help="another file for the report")
    options = parser.parse_args()
    machine, rows = report.describe_machine(1), []
    for what, run in parts():
        took = milliseconds(run, options.rounds)
        console.print(f"{what}: {spread(quartiles_of(took), 3)} ms")
        rows.append({"what": what, "ms": took})
    settings = report.settings_of(options)
    file = report.write("fleet_cost", settings, rows, machine=machine, out=options.out)
    console.print(f"written: {file}")


def parts() -> Iterator[tuple[str, Callable[[], object]]]:
    """What is measured, by its name."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        path = Path(folder) / "load"
        yield PUBLISH, partial(shared.write, path, _content())
        yield READ, partial(shared.read, path)
    told = _told()
    yield ANSWER, partial(read_load, told)
    for side in (128, 1024):
        yield f"look at an edit, {side} x {side}", partial(peek_grpc, _edit(side))
    asked = peek_grpc(_edit(128))
    for workers in (2, 8, 64):
        yield f"choose among {workers} workers", partial(_choose, _book(workers, told), asked)


def milliseconds(run: Callable[[], object], rounds: int) -> list[float]:
    """How long each of some calls takes."""
    took = []
    for _ in range(rounds):
        began = time.perf_counter()
        run()
        took.append(round(1e3 * (time.perf_counter() - began), 4))
    return took


def _content() -> dict[str, Any]:
    running = [{"job": f"{i:032}", "left": 9, "loras": [["night", 1.0]]} for i in range(RUNNING)]
    memory = {"memory": {f"{i:024}": KEPT for i in range(RECORDINGS)}}
    return {"slots": RUNNING, "running": running, "memory": memory}


def _book(workers: int, told: bytes) -> Book:
    book = Book()
    for name in range(workers):
        book.tell(str(name), read_load(told), time.monotonic() + _LATER_S)
    return book


def _choose(book: Book, asked: Peek) -> None:
    now = time.monotonic() + _LATER_S
    book.end(book.choose(asked, now), now)


def _told() -> bytes:
    running = tuple(Running(f"{i:032}", 9, 6, 2, 32, 32, 100) for i in range(RUNNING))
    recordings = tuple(Recorded(f"{i:016}", "euler", 20, KEPT, 10) for i in range(RECORDINGS))
    defaults = Defaults(20, 256, 256, 7.5, "euler", 8)
    load = Load("w", 8, running, recordings=recordings, lines=LINES, defaults=defaults)
    return msgspec.json.encode(load)


def _edit(side: int) -> bytes:
    """A `ModelInferRequest` with an image and a mask."""
    rng = np.random.default_rng(0)
    data = wire.request_of("edit", {"PROMPT": "a red circle", "JOB_ID": "j"})
    for name, shape in (("IMAGE", (1, side, side, 3)), ("MASK", (1, side, side))):
        array = rng.integers(0, 256, shape, np.uint8)
        dims = b"".join(wire.field(3, _varint(n)) for n in shape)
        head = wire.field(1, name.encode()) + wire.field(2, b"UINT8") + dims
        data += wire.field(5, head) + wire.field(7, array.tobytes())
    return data


def _varint(value: int) -> bytes:
    return bytes([value & 127 | 128, value >> 7]) if value > 127 else bytes([value])


if __name__ == "__main__":
    main()

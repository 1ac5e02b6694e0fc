"""What a fleet's parts cost: a look at a request, a choice, telling and reading the load.

    python -m bench.fleet_cost [--rounds 200]

Prints the table of docs/internals/fleet.md. Needs no server.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from tessera.shared import load as shared
from tessera_gateway.fleet import wire
from tessera_gateway.fleet.book import Book
from tessera_gateway.fleet.load import Defaults, Lines, Load, Recorded, Running, read_load
from tessera_gateway.fleet.peek import peek_grpc

RUNNING, RECORDINGS, KEPT = 8, 512, 20
LINES = Lines((0.0, 0.06), (12.0, 0.09))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="what a fleet's parts cost")
    parser.add_argument("--rounds", type=int, default=200, help="of each measurement")
    rounds = parser.parse_args().rounds
    print("| what | median (quartiles), ms |\n|---|---|")
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        path = Path(folder) / "load"
        content = {
            "slots": RUNNING,
            "running": [
                {"job": f"{i:032}", "left": 9, "loras": [["night", 1.0]]} for i in range(8)
            ],
            "memory": {"memory": {f"{i:024}": KEPT for i in range(RECORDINGS)}},
        }
        _row(
            "publish the load (8 requests, 512 recordings)",
            rounds,
            lambda: shared.write(path, content),
        )
        _row("read what was published", rounds, lambda: shared.read(path))
    told = _told()
    _row("read a worker's answer (8 requests, 512 recordings)", rounds, lambda: read_load(told))
    for side in (128, 1024):
        request = _edit(side)
        _row(f"look at an edit, {side} x {side}", rounds, lambda r=request: peek_grpc(r))  # type: ignore[misc]
    asked = peek_grpc(_edit(128))
    for workers in (2, 8, 64):
        book = Book()
        for name in range(workers):
            book.tell(str(name), read_load(told), time.monotonic() + 1e6)
        now = time.monotonic() + 1e6

        def choose(book: Book = book, now: float = now) -> None:
            book.end(book.choose(asked, now), now)

        _row(f"choose among {workers} workers", rounds, choose)


def _row(what: str, rounds: int, run: Callable[[], object]) -> None:
    took = []
    for _ in range(rounds):
        began = time.perf_counter()
        run()
        took.append(1e3 * (time.perf_counter() - began))
    low, middle, high = statistics.quantiles(took, n=4)
    print(f"| {what} | {middle:.3f} ({low:.3f}-{high:.3f}) |", flush=True)


def _told() -> bytes:
    import msgspec

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

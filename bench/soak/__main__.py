"""`python -m bench.soak`, see `bench.soak`."""

from __future__ import annotations

import argparse
import contextlib
import random
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
from rich.console import Console
from rich.progress import Progress, TaskID

from bench.server import DEMO_BUNDLE, ROOT, SHARED, Server, serving
from bench.soak.clients import Clients
from bench.soak.faults import STALL_S, Fault, Faults, mount, unmount
from bench.soak.report import Soak, Span, write
from bench.soak.traffic import PATIENCE_S, alone
from bench.soak.watch import Watch, shared_memory
from tessera_client import Client

_DISK_MB = 96
_BETWEEN_S = (6.0, 20.0)
_LONG_MINUTES, _CALM = 30.0, 1 / 6
"""A run of so many minutes has no faults in its first part and in its last one, which are compared:
a shorter one still warms up."""
console = Console(highlight=False)


def main() -> None:
    """Run it; exit code 1 if a picture is wrong, a request hangs, something is left behind, or
    memory or open files are more after the faults of half an hour or longer than before.
    """
    parser = argparse.ArgumentParser(description="mixed traffic with faults")
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--clients", type=int, default=3, help="processes")
    parser.add_argument("--threads", type=int, default=2, help="requests at a time of each")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--calm", action="store_true", help="without faults")
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "soak")
    options = parser.parse_args()
    soak = run(options)
    write(soak, options.out, console)
    console.print(f"written: {options.out}")
    if soak.failed:
        raise SystemExit(1)


def run(options: argparse.Namespace) -> Soak:
    """Serve, ask, do harm, look, end."""
    folder: Path = options.out
    shutil.rmtree(folder, ignore_errors=True)
    for name in ("templates", "temporary", "wrong"):
        (folder / name).mkdir(parents=True)
    variables = {"TMPDIR": str(folder / "temporary")}
    flags = (SHARED, f"--stall-seconds={STALL_S:g}")
    with _own_disk(folder / "templates") as full, contextlib.ExitStack() as stack:
        served = serving(DEMO_BUNDLE, folder / "server.log", *flags, variables=variables)
        server = stack.enter_context(served)
        expected = alone(server.http)
        watch = Watch(server)
        watch.start()
        began = time.monotonic()
        with Clients(server, options, expected, folder / "wrong") as clients:
            faults = Faults(server, folder / "templates", options.seed, full)
            done, unhealed, calm = _stretches(faults, options)
        ended = server.log.read_text().count("tritonserver has ended") - faults.kills
        left = unhealed or _jobs_left(server)
        watch.end()
        family = psutil.Process(server.process.pid).children(recursive=True)
        stack.close()
        _, alive = psutil.wait_procs(family, timeout=PATIENCE_S)
        left += [f"process {each.pid}" for each in alive]
        left += [str(path) for path in shared_memory(server)]
        left += [str(path) for path in (folder / "temporary").iterdir() if not _of_torch(path)]
        unfinished = len(list((folder / "templates").glob("*/.*")))
    happened = (clients.happened, done, watch.seen)
    return Soak(options.minutes, began, *happened, left, full, calm, ended, unfinished)


def _of_torch(path: Path) -> bool:
    """Whether it is the empty folder that torch's compiler makes when it is imported, one for all
    programs of a user. Networks of diffusers import it.
    """
    return path.name.startswith("torchinductor_") and not any(path.iterdir())


@contextlib.contextmanager
def _own_disk(folder: Path) -> Iterator[bool]:
    mounted = mount(folder, _DISK_MB)
    if not mounted:
        console.print("not allowed to mount a small disk: it will not be filled")
    try:
        yield mounted
    finally:
        if mounted:
            unmount(folder)


def _stretches(
    faults: Faults, options: argparse.Namespace
) -> tuple[list[Fault], list[str], tuple[Span, Span] | None]:
    """Calm, harm, calm: the faults, what the server did not recover from, which ends the run, and
    the second half of each calm.
    """
    whole = 60.0 * options.minutes
    calm = _CALM * whole if options.minutes >= _LONG_MINUTES else 0.0
    with Progress(console=console, transient=True) as progress:
        bar = progress.add_task("soak", total=whole)
        before = _be_calm(calm, progress, bar)
        done, unhealed = _do_harm(faults, options, whole - 2 * calm, progress, bar)
        after = _be_calm(0.0 if unhealed else calm, progress, bar)
    return done, unhealed, (before, after) if calm and not unhealed else None


def _be_calm(seconds: float, progress: Progress, bar: TaskID) -> Span:
    begin = time.monotonic()
    while (left := begin + seconds - time.monotonic()) > 0:
        time.sleep(min(1.0, left))
        progress.advance(bar, min(1.0, left))
    return begin + seconds / 2, begin + seconds


def _do_harm(
    faults: Faults, options: argparse.Namespace, seconds: float, progress: Progress, bar: TaskID
) -> tuple[list[Fault], list[str]]:
    done: list[Fault] = []
    rng = random.Random(options.seed)
    last = time.monotonic()
    end = last + seconds
    while (now := time.monotonic()) < end:
        time.sleep(min(rng.uniform(*_BETWEEN_S), end - now))
        if not options.calm and time.monotonic() < end:
            try:
                done.append(faults.next())
            except RuntimeError as error:
                return done, [str(error).splitlines()[0]]
            progress.console.print(f"{done[-1].what}: whole after {done[-1].seconds:.1f} s")
        progress.advance(bar, time.monotonic() - last)
        last = time.monotonic()
    return done, []


def _jobs_left(server: Server) -> list[str]:
    """Jobs that the server still has, long after all clients have ended."""
    end = time.monotonic() + PATIENCE_S
    with Client(server.http, timeout=PATIENCE_S) as client:
        while True:
            busy = client.capabilities().busy
            if busy is None or not busy.running + busy.waiting:
                return []
            if time.monotonic() > end:
                return [f"{busy.running} jobs that run, {busy.waiting} that wait"]
            time.sleep(0.5)


if __name__ == "__main__":
    main()

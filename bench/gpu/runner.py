"""Runs a list of steps, each in a process of its own with its own time limit; the report comes
last.

A step that fails or hangs does not stop the next one. What it had written by then is kept. Standard
library only.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import dataclasses
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.gpu.tables import render

GRACE_S = 5.0
"""How long a step has between SIGTERM and SIGKILL, to stop a server."""
SHORTEST_S = 5.0
"""A step is skipped when less than this is left for it."""
_PR_SET_CHILD_SUBREAPER = 36


@dataclass(frozen=True)
class Step:
    """A process that measures something.

    Attributes:
        name: in the report and for `--only`.
        limit_s: when it is killed.
        command: what runs; `{out}` is the file for its result.
        title: of its table.
    """

    name: str
    limit_s: float
    command: tuple[str, ...]
    title: str = ""


@dataclass
class Outcome:
    """How a step ended.

    Attributes:
        state: `ok`, `failed`, `timed out` or `no time`.
        error: last line of its log, if it is not ok.
        result: the JSON it wrote: `rows` and whatever else.
    """

    name: str
    state: str
    seconds: float
    limit_s: float
    error: str = ""
    title: str = ""
    result: dict[str, Any] = field(default_factory=dict)


def module_step(
    name: str,
    limit_s: float,
    module: str,
    *arguments: str,
    title: str = "",
    package: str = "bench.gpu",
) -> Step:
    """A step that is a module of a package."""
    line = (sys.executable, "-m", f"{package}.{module}", "--out", "{out}", *arguments)
    return Step(name, limit_s, line, title)


def main(
    name: str, steps: Sequence[Step], seconds: float, arguments: list[str], *, program: str = ""
) -> int:
    """Run the steps, print the report and keep it as NAME.txt; the exit status is 1 if one of them
    is not ok.

    Args:
        name: of the files that are written.
        steps: the most valuable first.
        seconds: for all of them.
        arguments: of the command line.
        program: how the command is called, in its help.
    """
    parser = argparse.ArgumentParser(prog=program or f"bench/gpu/{name}.sh")
    parser.add_argument("--tiny", action="store_true", help="use small networks, on any machine")
    parser.add_argument("--only", default="", help="run these steps alone, separated by commas")
    parser.add_argument("--seconds", type=float, default=seconds, help="limit for all steps")
    parser.add_argument("--deadline", type=float, default=0.0, help=argparse.SUPPRESS)
    parser.add_argument("--step", action="append", default=[], help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    adopt_orphans()
    injected = [_injected(text) for text in options.step]
    chosen = [s for s in steps if not options.only or s.name in options.only.split(",")]
    if options.tiny:
        os.environ["OMP_NUM_THREADS"] = "1"
        chosen = [dataclasses.replace(s, command=(*s.command, "--tiny")) for s in chosen]
    deadline = options.deadline or time.monotonic() + options.seconds
    out = Path(os.environ.get("OUT") or "out/gpu")
    outcomes = run_steps([*injected, *chosen], deadline=deadline, out=out, name=name)
    text = report(outcomes)
    (out / f"{name}.txt").write_text(text + "\n")
    print("\n" + text)
    return int(any(outcome.state != "ok" for outcome in outcomes))


def run_steps(
    steps: Sequence[Step], *, deadline: float, out: Path, name: str, grace_s: float = GRACE_S
) -> list[Outcome]:
    """Run steps one after the other; `out` gets NAME.json and NAME.log, written after each step.

    Args:
        steps: in their order.
        deadline: `time.monotonic()` at which the last one has to be over.
        out: folder.
        name: of the files.
        grace_s: see `GRACE_S`.
    """
    out.mkdir(parents=True, exist_ok=True)
    log = out / f"{name}.log"
    log.write_text("")
    outcomes: list[Outcome] = []
    for step in steps:
        left = deadline - time.monotonic() - grace_s
        outcome = Outcome(step.name, "no time", 0.0, step.limit_s, title=step.title)
        if left >= min(SHORTEST_S, step.limit_s):
            outcome = _run(step, min(left, step.limit_s), log, grace_s)
        outcomes.append(outcome)
        print(f"{outcome.name}: {outcome.state}, {outcome.seconds:.0f} s", flush=True)
        found = json.dumps([dataclasses.asdict(o) for o in outcomes], indent=1)
        (out / f"{name}.json").write_text(found + "\n")
    return outcomes


def report(outcomes: Sequence[Outcome]) -> str:
    """The steps' tables, then one of the steps themselves."""
    tables = [
        render(outcome.title or outcome.name, outcome.result["rows"])
        for outcome in outcomes
        if outcome.result.get("rows")
    ]
    steps = [
        {
            "step": outcome.name,
            "state": outcome.state,
            "s": round(outcome.seconds, 1),
            "limit s": round(outcome.limit_s),
            "last line of its error": outcome.error[:100],
        }
        for outcome in outcomes
    ]
    return "\n\n".join([*tables, render("Steps", steps)])


def adopt_orphans() -> None:
    """Have processes whose parent ends become children of this one (Linux), so that a step's
    grandchildren in sessions of their own can be found.
    """
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _run(step: Step, limit: float, log: Path, grace_s: float) -> Outcome:
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        result, own = Path(folder) / "result.json", Path(folder) / "log"
        line = [word.replace("{out}", str(result)) for word in step.command]
        with own.open("wb") as sink:
            try:
                code = _wait(line, sink, limit, grace_s)
            except OSError as failure:
                code, text = 127, str(failure)
            else:
                text = own.read_text(errors="replace")
        with log.open("a") as kept:
            kept.write(f"== {step.name}: {shlex.join(line)}\n{text}\n")
        state = "timed out" if code is None else "failed" if code else "ok"
        error = "" if state == "ok" else _last_line(text)
        if state == "timed out":
            error = f"killed after {limit:.0f} s; {error}"
        seconds = time.monotonic() - began
        outcome = Outcome(step.name, state, seconds, step.limit_s, error, step.title)
        outcome.result = _read(result)
    return outcome


def _wait(line: list[str], sink: Any, limit: float, grace_s: float) -> int | None:
    """Exit status of a command; `None` if it was killed. Nothing that it started is left."""
    others = _children()
    process = subprocess.Popen(
        line,
        stdin=subprocess.DEVNULL,
        stdout=sink,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        return process.wait(limit)
    except subprocess.TimeoutExpired:
        return None
    finally:
        _end(process, others, grace_s)


def _end(process: subprocess.Popen[bytes], others: Sequence[int], grace_s: float) -> None:
    """End a process and all that it left behind: politely, then not, then give up."""
    if process.returncode is None:
        _signal(process.pid, signal.SIGTERM)
    late = time.monotonic() + grace_s
    while time.monotonic() < late and process.poll() is None:
        time.sleep(0.02)
    while left := [pid for pid in _children() if pid not in others]:
        over = time.monotonic() - late
        if over > grace_s:
            print(f"still there after SIGKILL: {left}", flush=True)
            break
        for pid in left:
            _signal(pid, signal.SIGKILL if over > 0 or pid == process.pid else signal.SIGTERM)
            if pid != process.pid:
                _reap(pid)
        process.poll()
        time.sleep(0.02)


def _signal(pid: int, number: int) -> None:
    """Signal the group of a process, unless it is this one's own; then the process alone."""
    try:
        group = os.getpgid(pid)
        if group == os.getpgrp():
            os.kill(pid, number)
        else:
            os.killpg(group, number)
    except ProcessLookupError:
        pass


def _reap(pid: int) -> None:
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)


def _children() -> list[int]:
    """Processes of which this one is the parent."""
    pids = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    return [int(pid) for pid in pids]


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no output"


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {"rows": found}


def _injected(text: str) -> Step:
    """A step of a test: NAME:SECONDS:COMMAND."""
    name, seconds, command = text.split(":", 2)
    return Step(name, float(seconds), tuple(shlex.split(command)))

"""The form of a report in `bench/results`: what was measured, where, when and by which command.

    {"name": ..., "date": ..., "command": ..., "machine": {...}, "settings": {...}, "results": ...}

`machine` has when the run began, how long it took, the load average before it, and how fast the
machine was before and after (`bench.calibration`). Reports of before 2026-11-29 lack the first two
and the last. `results` holds raw samples wherever the benchmark has any. Rows that have the same
fields are written as `{"columns": [...], "rows": [[...], ...]}`. Tables and figures are rendered
from the file, never typed (`bench.tables`).
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shlex
import sys
from collections.abc import Iterator, Mapping
from datetime import date, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bench.calibration import product_ms
from bench.server import ROOT

FOLDER = ROOT / "bench" / "results"
FIELDS = ("name", "date", "command", "machine", "settings", "results")
_LIBRARIES = ("torch", "diffusers", "onnxruntime", "numpy", "nvidia-pytriton")


def path_of(name: str) -> Path:
    """Where a report of this name is."""
    return FOLDER / f"{name}.json"


@contextlib.contextmanager
def elsewhere(folder: Path) -> Iterator[None]:
    """Reports are in another folder until the end of the block."""
    global FOLDER
    before = FOLDER
    FOLDER = folder
    try:
        yield
    finally:
        FOLDER = before


def write(
    name: str,
    settings: Mapping[str, Any],
    results: Any,
    *,
    machine: Mapping[str, Any],
    out: Path | None = None,
) -> Path:
    """Write a report; returns its file.

    Args:
        name: of the report and of its file.
        settings: what decides the figures.
        results: what was measured.
        machine: what `describe_machine` said before the run.
        out: another file.
    """
    file = out or path_of(name)
    content = {
        "name": name,
        "date": date.today().isoformat(),
        "command": command(),
        "machine": ended(machine),
        "settings": dict(settings),
        "results": results,
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(_written(content))
    return file


def _written(content: Mapping[str, Any]) -> str:
    """JSON with a line for each field, and for each of the results."""
    lines = []
    for name, value in content.items():
        text = _compact(value)
        if name == "results" and (columns := _columns(value)):
            rows = ",\n".join(_compact([row[column] for column in columns]) for row in value)
            text = f'{{"columns": {_compact(columns)}, "rows": [\n{rows}\n]}}'
        elif name == "results" and isinstance(value, list) and value:
            text = "[\n" + ",\n".join(map(_compact, value)) + "\n]"
        elif name == "results" and isinstance(value, dict) and value:
            pairs = (f"{json.dumps(key)}: {_compact(each)}" for key, each in value.items())
            text = "{\n" + ",\n".join(pairs) + "\n}"
        lines.append(f"{json.dumps(name)}: {text}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _columns(value: Any) -> list[str]:
    """Names of the fields, if the value is rows that all have the same; else none."""
    if not isinstance(value, list) or not all(isinstance(row, dict) for row in value):
        return []
    fields = {tuple(row) for row in value}
    return list(fields.pop()) if len(fields) == 1 else []


def _compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


def read(name: str) -> dict[str, Any]:
    """A committed report.

    Raises:
        ValueError: it is not in the form.
    """
    content = parsed(path_of(name).read_text())
    if tuple(content) != FIELDS:
        raise ValueError(f"{path_of(name).name} has {list(content)}; accepted: {list(FIELDS)}")
    return content


def parsed(text: str) -> dict[str, Any]:
    """The content of a report's file, whose rows are mappings again."""
    content: dict[str, Any] = json.loads(text)
    results = content.get("results")
    if isinstance(results, dict) and tuple(results) == ("columns", "rows"):
        columns = results["columns"]
        content["results"] = [dict(zip(columns, row, strict=True)) for row in results["rows"]]
    return content


def command() -> str:
    """What this process was started as."""
    program, *options = sys.argv
    named = program.split() if program.startswith("bench ") else [f"bench.{Path(program).stem}"]
    return shlex.join(["python", "-m", *named, *options])


def describe_machine(threads: int) -> dict[str, Any]:
    """The machine and library versions that the figures depend on, before a run begins."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    load = round(os.getloadavg()[0], 2)
    return {
        "cpu": names[0] if names else platform.machine(),
        "threads": threads,
        "load_average_before": load,
        "python": platform.python_version(),
        "versions": {name: version(name) for name in _LIBRARIES},
        "product_ms": {"before": product_ms()},
        "began": datetime.now().isoformat(timespec="seconds"),
    }


def ended(machine: Mapping[str, Any]) -> dict[str, Any]:
    """What `describe_machine` said, with how long the run took that ends now, in seconds, and how
    fast the machine is after it.
    """
    found = dict(machine)
    if "began" in found:
        took = datetime.now() - datetime.fromisoformat(found["began"])
        found["seconds"] = round(took.total_seconds())
    if "product_ms" in found:
        found["product_ms"] = {**found["product_ms"], "after": product_ms()}
    return found

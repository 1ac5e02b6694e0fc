"""The form of a report in `bench/results`: what was measured, where, when and by which command.

    {"name": ..., "date": ..., "command": ..., "machine": {...}, "settings": {...}, "results": ...}

`machine` has when the run began, how long it took, the load average before it, and how fast the
machine was before and after (`bench.calibration`). Reports of before 2026-11-29 lack the first two
and the last. `results` holds raw samples wherever the benchmark has any. Rows that have the same
fields, at any depth, are written as `{"columns": [...], "rows": [[...], ...]}`. Tables and figures
are rendered from the file, never typed (`bench.tables`).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from datetime import date, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bench.calibration import product_ms
from bench.server import ROOT

FOLDER = ROOT / "bench" / "results"
FIELDS = ("name", "date", "command", "machine", "settings", "results")
ROWS = ("columns", "rows")
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
    lines = [
        f"{json.dumps(name)}: {_lined(_tabled(value)) if name == 'results' else _compact(value)}"
        for name, value in content.items()
    ]
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _lined(value: Any) -> str:
    """JSON with a line for each row, item or field."""
    if isinstance(value, dict) and tuple(value) == ROWS:
        return f'{{"columns": {_compact(value["columns"])}, "rows": {_lined(value["rows"])}}}'
    if isinstance(value, list) and value:
        return "[\n" + ",\n".join(map(_compact, value)) + "\n]"
    if isinstance(value, dict) and value:
        pairs = (f"{json.dumps(str(key))}: {_compact(each)}" for key, each in value.items())
        return "{\n" + ",\n".join(pairs) + "\n}"
    return _compact(value)


def _tabled(value: Any) -> Any:
    """The value, at any depth with the names of fields once where rows have the same ones."""
    if isinstance(value, dict):
        return {key: _tabled(each) for key, each in value.items()}
    if not isinstance(value, list | tuple):
        return value
    if not (columns := _columns(value)):
        return [_tabled(each) for each in value]
    rows = [[_tabled(row[column]) for column in columns] for row in value]
    return dict(zip(ROWS, (columns, rows), strict=True))


def _columns(value: Sequence[Any]) -> list[str]:
    """Names of the fields, if the items are rows that all have the same; else none."""
    if not all(isinstance(row, dict) for row in value):
        return []
    fields = {tuple(row) for row in value}
    return list(fields.pop()) if len(fields) == 1 else []


def _compact(value: Any) -> str:
    return json.dumps(_rounded(value), separators=(",", ":"))


def _rounded(value: Any) -> Any:
    """With numbers of six digits: no clock here is better."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: _rounded(each) for key, each in value.items()}
    return [_rounded(each) for each in value] if isinstance(value, list | tuple) else value


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
    content: dict[str, Any] = json.loads(text, object_hook=_rows)
    return content


def _rows(value: dict[str, Any]) -> Any:
    """A table's rows as mappings; anything else as it is."""
    if tuple(value) != ROWS:
        return value
    return [dict(zip(value["columns"], row, strict=True)) for row in value["rows"]]


def settings_of(options: argparse.Namespace) -> dict[str, Any]:
    """A benchmark's options as settings: all but where it writes to."""
    return {
        name: str(value) if isinstance(value, Path) else value
        for name, value in vars(options).items()
        if name not in ("out", "figure")
    }


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

"""Runs NVIDIA's perf_analyzer and reads its report.

The binary is in the wheel of tritonclient 2.51, the newest that runs on Debian 12. `make` unpacks
it into the virtual environment. It needs two shared libraries that the wheel of nvidia-pytriton has
under other names. Links with the expected names are put into a temporary folder.
"""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_UNPACKED = Path(sys.prefix) / "perf_analyzer" / "bin" / "perf_analyzer"
_LIBRARIES = {"libb64.so.0d": "libb64-*", "libcudart.so.12": "libcudart-*"}


@dataclass(frozen=True)
class Load:
    """One line of the report: a load level, requests per second, latencies in milliseconds."""

    level: float
    throughput: float
    p50_ms: float
    p90_ms: float
    p95_ms: float
    p99_ms: float


def find_perf_analyzer() -> Path | None:
    """The binary: on PATH (NVIDIA's SDK container) or unpacked by `make`."""
    on_path = shutil.which("perf_analyzer")
    if on_path:
        return Path(on_path)
    return _UNPACKED if _UNPACKED.exists() else None


def measure_load(
    url: str,
    inputs: Mapping[str, Any],
    *,
    concurrency: str = "",
    request_rate: str = "",
    requests: int = 20,
    stability: int = 20,
    extra: Sequence[str] = (),
) -> list[Load]:
    """Put load on the model `generate` and return one `Load` per level.

    Args:
        url: `http://host:port` or `grpc://host:port`.
        inputs: inputs of every request, by name.
        concurrency: `start:end:step` of concurrent requests. Use this or `request_rate`.
        request_rate: `start:end:step` of requests per second.
        requests: number of requests in a measurement window.
        stability: largest difference between windows of a stable result, in per cent.
        extra: additional flags for perf_analyzer.

    Raises:
        FileNotFoundError: perf_analyzer is not installed.
        RuntimeError: perf_analyzer failed. The message has its output.
    """
    binary = find_perf_analyzer()
    if binary is None:
        raise FileNotFoundError("perf_analyzer is not installed; `make setup` unpacks it")
    protocol, _, address = url.partition("://")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data, report = folder / "inputs.json", folder / "report.csv"
        data.write_text(json.dumps({"data": [{k: [v] for k, v in inputs.items()}]}))
        load = ["--concurrency-range", concurrency] if concurrency else []
        load += ["--request-rate-range", request_rate] if request_rate else []
        windows = ["--measurement-mode", "count_windows", "--measurement-request-count"]
        command = [str(binary), "-m", "generate", "-u", address, "-i", protocol, *load]
        command += ["--input-data", str(data), "-f", str(report), *windows, str(requests)]
        command += ["--stability-percentage", str(stability), *extra]
        done = subprocess.run(
            command,
            env=_environment(folder),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        if done.returncode != 0 or not report.exists():
            raise RuntimeError(f"perf_analyzer failed ({done.returncode}):\n{done.stdout}")
        return read_report(report.read_text())


def read_report(text: str) -> list[Load]:
    """The lines of perf_analyzer's CSV report."""
    rows = csv.DictReader(text.strip().splitlines())
    return [
        Load(
            level=float(row.get("Concurrency") or row["Request Rate"]),
            throughput=float(row["Inferences/Second"]),
            p50_ms=float(row["p50 latency"]) / 1e3,
            p90_ms=float(row["p90 latency"]) / 1e3,
            p95_ms=float(row["p95 latency"]) / 1e3,
            p99_ms=float(row["p99 latency"]) / 1e3,
        )
        for row in rows
    ]


def _environment(folder: Path) -> dict[str, str]:
    spec = importlib.util.find_spec("pytriton")
    if spec is not None and spec.origin is not None:
        libraries = Path(spec.origin).parents[1] / "nvidia_pytriton.libs"
        for name, pattern in _LIBRARIES.items():
            for library in libraries.glob(pattern):
                (folder / name).symlink_to(library)
    search = os.pathsep.join([str(folder), os.environ.get("LD_LIBRARY_PATH", "")])
    return os.environ | {"LD_LIBRARY_PATH": search}

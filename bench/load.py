"""Concurrent clients, driven by NVIDIA's perf_analyzer."""

from __future__ import annotations

from rich.progress import track
from rich.table import Table

from bench.latency import PROMPT
from bench.perf_analyzer import Load, measure_load
from bench.server import Server

CONCURRENCY = (1, 2, 4, 8)


def measure(server: Server, *, steps: int) -> dict[str, list[Load]]:
    """Measure a closed loop over gRPC at each level of `CONCURRENCY`."""
    inputs = {"PROMPT": PROMPT, "STEPS": steps, "SEED": 1}
    levels = []
    for n in track(CONCURRENCY, description="perf_analyzer, gRPC"):
        levels += measure_load(
            server.grpc, inputs, concurrency=f"{n}:{n}:1", requests=max(16, 4 * n), stability=50
        )
    return {"grpc concurrency": levels}


def table(levels: dict[str, list[Load]]) -> Table:
    """perf_analyzer's figures as a table."""
    shown = Table(title="Throughput and latency under load (perf_analyzer)")
    for column in ("load", "images/s", "p50 ms", "p90 ms", "p95 ms", "p99 ms"):
        shown.add_column(column, justify="right")
    for name, found in levels.items():
        for level in found:
            times = (level.p50_ms, level.p90_ms, level.p95_ms, level.p99_ms)
            shown.add_row(
                f"{name} {level.level:g}", f"{level.throughput:.2f}", *(f"{t:.0f}" for t in times)
            )
    return shown

"""Benchmarks of what single parts cost, and their tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bench import report, sizes
from bench.fleet_cost import milliseconds, parts
from bench.fleet_hop import differences
from bench.tables import TABLES
from tessera_build.precision import PRECISIONS

HOP = {
    "protocol": "gRPC",
    "side": 128,
    "direct_ms": [1.0, 2.0, 3.0],
    "front_ms": [2.5, 3.5, 6.5],
    "computed_ms": 1.25,
}
RESULTS: dict[str, tuple[str, dict[str, Any], Any, list[str]]] = {
    "fleet_cost": (
        "fleet_cost",
        {},
        [{"what": "read", "ms": [0.1, 0.2, 0.3]}],
        ["| read | 0.200 (0.150-0.250) |"],
    ),
    "fleet_hop": (
        "fleet_hop",
        {},
        [HOP],
        ["| gRPC | 128 x 128 | 2.0 (1.5-2.5) | 3.5 (3.0-5.0) | 1.5 (1.5-2.5) | 1.2 |"],
    ),
    "fleet_memory": (
        "fleet_memory",
        {"requests": 1000},
        [{"protocol": "gRPC", "before_mb": 100.0, "waiting_mb": 350.0, "after_mb": 340.0}],
        ["1,000 wait, MB", "| gRPC | 100 | 350 | 250 | 340 |"],
    ),
    "metrics-cost": (
        "metrics_cost",
        {"tick_ms": 26.0},
        {"us": [51.0, 52.0, 53.0]},
        ["| 52.0 (51.5-52.5) | 26 ms | 0.20 % |"],
    ),
    "startup": (
        "startup",
        {},
        {"seconds": {"start": [6.0, 5.0, 7.5]}, "cpu_s": {"together": [10.0, 9.0, 11.0]}},
        ["| start | 6.00 (5.00 to 7.50) | 3 |", "all processes | 10.00 (9.00 to 11.00) | 3 |"],
    ),
    "cache-bytes": (
        "cache_bytes",
        {},
        [{"form": "int8", "bytes": {"sd15, 512": 2e9}, "of_a_step": {"sd15, 512": 65e6}}],
        ["| form | sd15, 512 |", "| int8 | 2.0 (65) |"],
    ),
    "sizes": (
        "sizes",
        {},
        [{"variant": "sd15", "network": "unet", "parameters": 1000, "bytes": {"fp16": 2e9}}],
        ["fp16, GB |", "| sd15 | unet | 1,000 | 2.00 |"],
    ),
}
"""By table: its report's name, settings and results, and what the table says."""


@pytest.mark.parametrize("name", RESULTS)
def test_a_table_says_what_its_report_has(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of, settings, results, said = RESULTS[name]
    monkeypatch.setattr("sys.argv", ["bench one"])
    with report.elsewhere(tmp_path):
        assert "has not been run" in TABLES[name]()
        report.write(of, settings, results, machine={})
        table = TABLES[name]()
    for cells in said:
        assert cells in table
    assert "`python -m bench one`, 20" in table


def test_what_the_front_adds_is_the_difference_within_a_turn() -> None:
    assert differences(HOP) == [1.5, 1.5, 3.5]


def test_parts_of_a_fleet_can_be_measured() -> None:
    found = {what: milliseconds(run, 2) for what, run in parts()}
    assert all(len(took) == 2 and min(took) > 0 for took in found.values())
    assert len(found) == 8


def test_sizes_are_those_of_the_published_networks() -> None:
    """Parameters of Stable Diffusion 1.5, as its cards and diffusers give them."""
    rows = {row["network"]: row for row in sizes.computed("sd15")}
    assert rows["unet"]["parameters"] == 859_520_964
    assert rows["text_encoder"]["parameters"] == 123_060_480
    assert rows["controlnet_any"]["parameters"] == 361_279_120
    bundle = rows[sizes.BUNDLE]
    networks = [
        row for name, row in rows.items() if name in ("unet", "text_encoder") or "vae" in name
    ]
    assert bundle["parameters"] == sum(row["parameters"] for row in networks)
    for name in PRECISIONS:
        assert bundle["bytes"][name] == sum(row["bytes"][name] for row in networks)
    assert rows["unet"]["bytes"]["fp32"] == 4 * 859_520_964

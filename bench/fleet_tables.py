"""Tables of fleets, of several devices and of ControlNets; see `bench.tables`."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from bench import report
from bench.markdown import markdown, spread

SIMULATED: dict[str, dict[str, Any]] = {
    "nothing missing, 80 %": {"experiment": "nothing missing", "busy": 0.8},
    "edits, 60 %": {"experiment": "edits", "busy": 0.6},
    "edits, 80 %": {"experiment": "edits", "busy": 0.8},
    "edits, 90 %": {"experiment": "edits", "busy": 0.9},
    "even popularity, 80 %": {"experiment": "even popularity", "busy": 0.8},
    "LoRAs, ControlNets, 80 %": {"experiment": "LoRAs and ControlNets", "busy": 0.8},
    "half edits, 80 %": {"experiment": "half edits", "busy": 0.8},
}
"""Columns of the table of policies: which rows of the report each shows."""
KILLED = {
    "tritonserver": "a worker's tritonserver",
    "tessera-serve": "a worker's `tessera-serve`",
    "actor": "a worker's actor",
    "directory": "the directory",
    "controller": "Serve's controller",
    "node": "the second node; a third one came",
    "front": "the front",
    "gcs": "the GCS, without Redis, started again after 5 s",
    "gcs, with Redis": "the GCS, with Redis, started again after 5 s",
}


def fleet_policies() -> str:
    """P95 of the simulated policies."""
    rows = _content("fleet_sim")["rows"]
    policies = dict.fromkeys(row["policy"] for row in rows)
    cells = {
        policy: [
            _mean(
                run["p95"] for row in rows if wanted.items() <= row.items() for run in row["runs"]
            )
            for column in SIMULATED.values()
            for wanted in [column | {"policy": policy}]
        ]
        for policy in policies
    }
    return markdown(("policy", *SIMULATED), [[policy, *row] for policy, row in cells.items()])


def fleet_validate() -> str:
    """The simulation in terms of what was real."""
    ratios = _content("fleet_validate")["ratios"]
    rows = [
        [workload, *(spread(of[name], 2) for name in ("p50", "p95"))]
        for workload, of in ratios.items()
    ]
    return markdown(("workload", "P50", "P95"), rows)


def fleet_locality() -> str:
    """Policies of two real workers."""
    runs = _content("fleet_locality")["runs"]
    rows = []
    for policy in ("locality", "least requests", "round robin"):
        mine = [run for run in runs if run["policy"] == policy]
        seconds = [_mean(run[name] / 1e3 for run in mine) for name in ("p50_ms", "p95_ms")]
        shares = [
            _mean((100 * value for value in values), unit=" %")
            for values in (
                [run["found"] for run in mine],
                [run["found_by_kind"]["ControlNet"] for run in mine],
            )
        ]
        rows.append([policy, *seconds, _mean(run["pictures_per_second"] for run in mine), *shares])
    head = ("policy", "P50, s", "P95, s", "pictures a second", "found all", "ControlNets found")
    return markdown(head, rows)


def fleet_faults() -> str:
    """What a kill costs a fleet."""
    rows = []
    for fault in _content("fleet_faults")["faults"]:
        seen, well = fault["seen"], fault["well_s"]
        after = f"never: `tessera-fleet` ended with status {fault['ended']}"
        lost = [str(seen[name]) for name in ("drawn", "lost_begun", "lost_not_begun")]
        rows.append([KILLED[fault["fault"]], *lost, after if well is None else f"{well:.0f}"])
    return markdown(("killed", "drawn", "lost: begun", "not begun", "all is well after, s"), rows)


def devices() -> str:
    """Rows on one device and on two, and beside the VAE."""
    rows = [
        [row["what"], spread(row["one"]), spread(row["other"]), f"{row['ratio']:.2f}"]
        for row in report.read("devices")["results"]["rows"]
    ]
    return markdown(("what", "one", "other", "ratio"), rows)


def controls_overlap() -> str:
    """Ticks with ControlNets beside the encoder half."""
    rows = [
        [
            *(f"{row[name]:.0f}" for name in ("controlnets", "slowest_ms", "sum_ms")),
            *(f"{row[name]:.1f}" for name in ("encoder_half_ms", "decoder_half_ms", "tick_ms")),
            spread([row[f"excess_{name}"] for name in ("low_ms", "ms", "high_ms")]),
        ]
        for row in report.read("controls")["results"]["overlap"]
    ]
    beyond = "beyond max(encoder half, slowest) + decoder half"
    head = ("ControlNets", "slowest", "sum", "encoder half", "decoder half", "tick", beyond)
    return markdown(head, rows)


def controls_transfer() -> str:
    """Residuals on their way between processes."""
    numbers = ("rows", "controlnets", "mb_each", "first_call_ms", "call_ms", "add_ms")
    digits = {"mb_each": 1}
    rows = [
        [f"{row[name]:.{digits.get(name, 0)}f}" for name in numbers]
        for row in report.read("controls")["results"]["transfer"]
    ]
    head = ("rows", "ControlNets at once", "MB of each", "first call", "call", "additions")
    return markdown(head, rows)


def _content(name: str) -> dict[str, Any]:
    """A report of a fleet, which has a form of its own."""
    content: dict[str, Any] = json.loads(report.path_of(name).read_text())
    return content


def _mean(values: Any, unit: str = "") -> str:
    """Of some runs, with the lowest and the highest in brackets."""
    found: Sequence[float] = list(values)
    mean = sum(found) / len(found)
    digits = 2 if mean < 10 and not unit else 1 if mean < 20 and not unit else 0
    low, high = (f"{value:.{digits}f}" for value in (min(found), max(found)))
    return f"{mean:.{digits}f}{unit} ({low}-{high})"


FLEET_TABLES: dict[str, Callable[[], str]] = {
    "fleet_policies": fleet_policies,
    "fleet_validate": fleet_validate,
    "fleet_locality": fleet_locality,
    "fleet_faults": fleet_faults,
    "devices": devices,
    "controls_overlap": controls_overlap,
    "controls_transfer": controls_transfer,
}

"""Tables of fleets, of several devices and of ControlNets; see `bench.tables`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from bench import fleet_hop as fleet_hop_bench
from bench import report
from bench.markdown import NOT_YET, by_command, if_measured, markdown, spread
from bench.sampled import quartiles_of

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
    content = report.read("fleet_sim")
    rows = content["results"]
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
    found = [[policy, *row] for policy, row in cells.items()]
    return by_command(content, markdown(("policy", *SIMULATED), found))


def fleet_validate() -> str:
    """The simulation in terms of what was real."""
    content = report.read("fleet_validate")
    ratios = content["results"]["ratios"]
    rows = [
        [workload, *(spread(of[name], 2) for name in ("p50", "p95"))]
        for workload, of in ratios.items()
    ]
    return by_command(content, markdown(("workload", "P50", "P95"), rows))


def fleet_locality() -> str:
    """Policies of two real workers."""
    content = report.read("fleet_locality")
    runs = content["results"]
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
    return by_command(content, markdown(head, rows))


def fleet_faults() -> str:
    """What a kill costs a fleet."""
    rows = []
    for fault in report.read("fleet_faults")["results"]:
        seen, well = fault["seen"], fault["well_s"]
        after = f"never: `tessera-fleet` ended with status {fault['ended']}"
        lost = [str(seen[name]) for name in ("drawn", "lost_begun", "lost_not_begun")]
        cells = [*lost, after if well is None else f"{well:.0f}", fault["date"]]
        rows.append([KILLED[fault["fault"]], *cells])
    head = ("killed", "drawn", "lost: begun", "not begun", "all is well after, s", "measured")
    return markdown(head, rows)


def fleet_cost() -> str:
    """What the parts of a fleet's front cost."""
    if (content := if_measured("fleet_cost")) is None:
        return NOT_YET.format("fleet-cost")
    rows = [[row["what"], spread(quartiles_of(row["ms"]), 3)] for row in content["results"]]
    return by_command(content, markdown(("what", "ms"), rows))


def fleet_hop() -> str:
    """What the way through a front adds to a request."""
    if (content := if_measured("fleet_hop")) is None:
        return NOT_YET.format("fleet-hop")
    rows = [
        [
            row["protocol"],
            f"{row['side']} x {row['side']}",
            *(
                spread(quartiles_of(of))
                for of in (row["direct_ms"], row["front_ms"], fleet_hop_bench.differences(row))
            ),
            f"{row['computed_ms']:.1f}",
        ]
        for row in content["results"]
    ]
    times = ("direct, ms", "through the front, ms", "difference, ms", "front's CPU, ms")
    return by_command(content, markdown(("protocol", "picture", *times), rows))


def fleet_memory() -> str:
    """Memory of a front while requests wait."""
    if (content := if_measured("fleet_memory")) is None:
        return NOT_YET.format("fleet-memory")
    count, rows = content["settings"]["requests"], []
    for row in content["results"]:
        before, waiting, after = (row[f"{when}_mb"] for when in ("before", "waiting", "after"))
        each = 1e3 * (waiting - before) / count
        rows.append([row["protocol"], *(f"{n:.0f}" for n in (before, waiting, each, after))])
    head = ("front before, MB", f"{count:,} wait, MB", "kB a request", "front after, MB")
    return by_command(content, markdown(("protocol", *head), rows))


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
    "fleet_cost": fleet_cost,
    "fleet_hop": fleet_hop,
    "fleet_memory": fleet_memory,
    "devices": devices,
    "controls_overlap": controls_overlap,
    "controls_transfer": controls_transfer,
}

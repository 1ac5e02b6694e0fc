"""Tables of traces against baselines; see `bench.tables`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from bench.baselines import BATCHED, EQUAL, OWN, SINGLE, STATIC, TESSERA, report_of
from bench.markdown import NOT_YET, if_measured, markdown, two

Run = Mapping[str, Any]
SIDES = (TESSERA, STATIC, SINGLE, BATCHED)
SCENARIOS = ("text", "add-ons", "edits")
"""Of `bench.trace`, beside `mixed`, which has tables of its own."""
SHARE = 0.8
"""Of a capacity, in tables with one load."""
GOALS = (
    ("p95, diffusers with static batches on Triton", (BATCHED,), False, 3.0),
    ("p95, Tessera with static batches", (STATIC,), False, 1.35),
    ("p95 of edits, the better one of diffusers' dense inpainting", (SINGLE, BATCHED), True, 2.0),
)
"""How much longer it takes others: what, their sides, edits only, at least how many times."""


def baselines() -> str:
    """The mixed trace, all loads."""
    if (content := if_measured("baselines")) is None:
        return NOT_YET.format("baselines")
    capacity, runs = content["results"]["capacity"], content["results"]["runs"]
    rows = []
    for run in runs:
        of = "its own" if run["load"] == OWN else "the slowest one's"
        summary = run["summary"]
        rows.append(
            [
                f"{run['share']:g} of {of}",
                run["side"],
                two(summary["rate"]),
                two(capacity[run["side"]]),
                *_latencies(run),
                two(summary["pictures_per_s"]),
                _percent(summary["good"]),
                ratio(run, _of(runs, TESSERA, run["load"], run["share"])),
            ]
        )
    head = ("load: share of capacity", "side", "requests/s", "pictures/s, all at once", *_LATENCIES)
    in_time = f"within {content['settings']['deadline']:g} s"
    return markdown((*head, "pictures/s", in_time, "p95 / Tessera's (of rounds)"), rows)


def short() -> str:
    """The mixed trace at one rate for all."""
    if (content := if_measured("baselines")) is None:
        return NOT_YET.format("baselines")
    capacity, runs = content["results"]["capacity"], content["results"]["runs"]
    same = [run for run in runs if (run["load"], run["share"]) == (EQUAL, SHARE)]
    rows = [
        [
            run["side"],
            two(capacity[run["side"]]),
            *_latencies(run),
            ratio(run, _of(same, TESSERA, EQUAL, SHARE)),
        ]
        for run in same
    ]
    head = ("side", "pictures/s, all at once", *_LATENCIES, "p95 / Tessera's (of rounds)")
    return markdown(head, rows)


def goals() -> str:
    """Each goal with its figure."""
    if (content := if_measured("baselines")) is None:
        return NOT_YET.format("baselines")
    runs = content["results"]["runs"]
    rows = []
    for what, sides, edits, least in GOALS:
        cells = []
        for load in (EQUAL, OWN):
            found = [run for side in sides if (run := _of(runs, side, load, SHARE))]
            best = min(found, key=partial(_p95, edits=edits), default=None)
            cells.append(_goal(best, _of(runs, TESSERA, load, SHARE), edits, least))
        rows.append([what, f"{least:g}", *cells])
    loads = (f"{SHARE:g} of the slowest one's capacity", f"{SHARE:g} of its own capacity")
    return markdown(("/ Tessera's", "goal", *loads), rows)


def differences() -> str:
    """How far pictures of both engines are apart."""
    if (content := if_measured("baselines")) is None:
        return NOT_YET.format("baselines")
    rows = [
        [kind, *("-" if of[name] is None else f"{of[name]:g}" for name in ("largest", "mean"))]
        for kind, of in content["results"]["differences"].items()
    ]
    return markdown(("picture", "largest difference, of 255", "mean"), rows)


def scenarios() -> str:
    """The other scenarios: capacities, and the tail of each side at each load."""
    rows: list[list[str]] = []
    for scenario in SCENARIOS:
        if (content := if_measured(report_of(scenario))) is None:
            rows.append([NOT_YET.format(f"baselines-{scenario}"), "", *("" for _ in SIDES)])
            continue
        results = content["results"]
        capacities = [two(results["capacity"][side]) for side in SIDES]
        rows.append([f"**{scenario}**", "pictures/s, all at once", *capacities])
        runs = results["runs"]
        for load, share in dict.fromkeys((run["load"], run["share"]) for run in runs):
            found = [_of(runs, side, load, share) for side in SIDES]
            of = "its own" if load == OWN else "the slowest one's"
            rows.append(["", f"{share:g} of {of}", *(_tail(run, found[0]) for run in found)])
    return markdown(("scenario", "load: share of capacity", *SIDES), rows)


def _tail(run: Run | None, ours: Run | None) -> str:
    """p95, how many times Tessera's that is, and how many came in time."""
    if run is None or ours is None:
        return "not measured"
    times = "" if run is ours else f" ({two(_p95(run, edits=False) / _p95(ours, edits=False))})"
    return f"{two(_p95(run, edits=False))} s{times}, {_percent(run['summary']['good'])}"


_LATENCIES = ("p50, s", "p95, s", "p95 of edits, s")


def ratio(run: Run, ours: Run | None, *, edits: bool = False) -> str:
    """How many times ours a side's p95 is: of all requests, and least and most of a round."""
    if ours is None:
        return "-"
    if run is ours:
        return "1"
    rounds = [
        theirs / own
        for theirs, own in zip(_rounds(run, edits), _rounds(ours, edits), strict=True)
        if theirs and own
    ]
    spread = f" ({two(min(rounds))}-{two(max(rounds))})" if len(rounds) > 1 else ""
    return f"{two(_p95(run, edits) / _p95(ours, edits))}{spread}"


def _goal(run: Run | None, ours: Run | None, edits: bool, least: float) -> str:
    if run is None or ours is None:
        return "not measured"
    met = _p95(run, edits) / _p95(ours, edits) >= least
    return f"{ratio(run, ours, edits=edits)}, {'met' if met else 'not met'}"


def _of(runs: Any, side: str, load: str, share: float) -> Run | None:
    """A side's run at a load."""
    wanted = (side, load, share)
    return next((r for r in runs if (r["side"], r["load"], r["share"]) == wanted), None)


def _p95(run: Run, edits: bool) -> float:
    value: float = (run["kinds"]["edit"] if edits else run["summary"]["latency_s"])["p95"]
    return value


def _rounds(run: Run, edits: bool) -> list[float | None]:
    found: list[float | None] = (run["kinds"]["edit"] if edits else run["summary"])["p95_of_rounds"]
    return found


def _latencies(run: Run) -> list[str]:
    """Cells of `_LATENCIES`."""
    latency, edit = run["summary"]["latency_s"], run["kinds"].get("edit", {})
    return [*(two(latency[p]) for p in ("p50", "p95")), two(edit["p95"]) if "p95" in edit else "-"]


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


BASELINE_TABLES: dict[str, Callable[[], str]] = {
    "baselines": baselines,
    "baselines-short": short,
    "baselines-goals": goals,
    "baselines-differences": differences,
    "scenarios": scenarios,
}
"""By the name in a text."""

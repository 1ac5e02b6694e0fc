"""Figures of a report that have a spread, so that two runs of a benchmark can be compared.

A figure is the median of several turns, with its quartiles. Where two sides take turns it is their
ratio within a turn. `FORMS` says how each report has them, `WITHOUT` why others have none.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.baselines import TESSERA, label_of
from bench.fleet_hop import differences
from bench.lora_crossover import in_turns
from bench.profile import outside_share

Quartiles = tuple[float, float, float]
Content = Mapping[str, Any]


@dataclass(frozen=True)
class Figure:
    """One figure of a run.

    Attributes:
        name: what it is, with its unit unless it is a ratio.
        quartiles: lower, median and upper.
        turns: how many there were, None if the report does not say.
        sides: medians of both sides of a ratio, in milliseconds.
    """

    name: str
    quartiles: Quartiles
    turns: int | None = None
    sides: tuple[float, float] | None = None


@dataclass(frozen=True)
class Form:
    """How a report has its figures.

    Attributes:
        figures: reads them; there are none in reports of before they had samples.
        options: settings that the benchmark takes as options of the same name.
        free: settings that may differ, since they are measured or no figure depends on them.
    """

    figures: Callable[[Content], Iterator[Figure]]
    options: tuple[str, ...] = ()
    free: tuple[str, ...] = ()


def quartiles_of(samples: Sequence[float]) -> Quartiles:
    """Lower quartile, median and upper quartile of samples; of a single one, itself."""
    if len(samples) == 1:
        return (samples[0],) * 3
    low, middle, high = statistics.quantiles(samples, n=4, method="inclusive")
    return low, middle, high


def by_turn(name: str, one: Sequence[float], other: Sequence[float]) -> Figure:
    """The ratio of one side to another within each turn."""
    ratios = [a / b for a, b in zip(one, other, strict=True)]
    sides = (statistics.median(one), statistics.median(other))
    return Figure(name, quartiles_of(ratios), len(ratios), sides)


def _of(values: Sequence[float]) -> Quartiles:
    """Quartiles as a report has them."""
    low, middle, high = values
    return low, middle, high


def _pictures(content: Content) -> Iterator[Figure]:
    found = content["results"]["latency"]["all"]
    turns, sides = found["turns"], (found["server_ms"][1], found["diffusers_ms"][1])
    yield Figure("picture, Tessera / diffusers", _of(found["ratio"]), turns, sides)
    yield Figure("outside the engines, share", _of(found["outside_engines_share"]), turns)
    for each in content["results"]["sparse"]:
        sparse = [a + b for a, b in zip(each["run"], each["assembly"], strict=True)]
        yield by_turn(f"step, mask {each['ratio']:g}, sparse / dense", sparse, each["dense"])


def _edits(content: Content) -> Iterator[Figure]:
    for level in content["results"]["levels"]:
        samples = level["samples_ms"]
        for side in ("sparse", "dense"):
            name = f"mask {level['ratio']:g}, {side} / diffusers"
            yield by_turn(name, samples[side], samples["diffusers"])


def _profile(content: Content) -> Iterator[Figure]:
    for name, turns in content["results"].items():
        shares = [outside_share(turn) for turn in turns]
        yield Figure(f"{name}, outside the engines, share", quartiles_of(shares), len(turns))
        whole = [sum(turn.values()) for turn in turns]
        yield Figure(f"{name}, a picture, ms", quartiles_of(whole), len(turns))


def _gateway(content: Content) -> Iterator[Figure]:
    found, watched = content["results"]["overhead"], content["results"]["watched"]
    sides = (found["gateway_ms"][1], found["sdk_ms"][1])
    yield Figure("gateway - SDK, ms", _of(found["difference_ms"]), found["rounds"], sides)
    sides = (watched["watched_tick_ms"][1], watched["tick_ms"][1])
    turns = content["settings"].get("turns")
    yield Figure("watched tick / tick", _of(watched["ratio"]), turns, sides)


def _previews(content: Content) -> Iterator[Figure]:
    served, turns = content["results"]["served"], content["settings"].get("turns")
    for name, found in served.items():
        if name == "nobody":
            continue
        ratio = (found["ratio_q1"], found["ratio"], found["ratio_q3"])
        sides = (found["tick_ms"], served["nobody"]["tick_ms"])
        yield Figure(f"tick with previews by {name} / without", ratio, turns, sides)


def _controls(content: Content) -> Iterator[Figure]:
    for each in content["results"]["overlap"]:
        excess = (each["excess_low_ms"], each["excess_ms"], each["excess_high_ms"])
        yield Figure(f"{each['controlnets']} ControlNets, beyond the parts of a tick, ms", excess)


def _devices(content: Content) -> Iterator[Figure]:
    for row in content["results"]["rows"]:
        yield by_turn(f"{row['what']}, other / one", *reversed(row["ms"]))


def _adapters(content: Content) -> Iterator[Figure]:
    size = content["settings"]["requests"]
    blocks = {
        path: [
            statistics.median(of["latencies_ms"][first : first + size])
            for first in range(0, len(of["latencies_ms"]), size)
        ]
        for path, of in content["results"].items()
    }
    for path in ("side", "auto"):
        yield by_turn(f"median of a block, {path} / refit", blocks[path], blocks["refit"])


def _restarts(content: Content) -> Iterator[Figure]:
    for what, seconds in content["results"].items():
        yield Figure(f"{what}, s", quartiles_of(seconds), len(seconds))


def _switch(content: Content) -> Iterator[Figure]:
    for name, samples in content["results"].get("samples_ms", {}).items():
        yield Figure(f"{name}, ms", quartiles_of(samples), len(samples))


def _crossover(content: Content) -> Iterator[Figure]:
    steps = content["settings"]["steps"]
    for level in content["results"]["levels"]:
        if not (samples := level.get("samples_ms")):
            continue
        pairs = zip(samples["pair"], samples["refit"], strict=True)
        turns = [in_turns(*pair, level["sets"], steps) for pair in pairs]
        name = f"{level['layers']}, rank {level['rank']}, {level['sets']} sets, side / turns"
        yield by_turn(name, samples["side"], turns)


def _baselines(content: Content) -> Iterator[Figure]:
    """What p95 of a round is, of Tessera's in the same round at the same load."""
    runs = content["results"]["runs"]
    ours = {(of["load"], of["share"]): of for of in runs if of["side"] == TESSERA}
    for of in runs:
        sides = (of, ours[of["load"], of["share"]])
        p95 = [[s and 1e3 * s for s in side["summary"]["p95_of_rounds"]] for side in sides]
        if of["side"] != TESSERA and len(p95[0]) > 1 and all(p95[0] + p95[1]):
            yield by_turn(f"{label_of(of)}, p95 / Tessera's", *p95)


def _optimum(content: Content) -> Iterator[Figure]:
    ours, *others = content["results"]["samples_ms"].items()
    for name, samples in others:
        yield by_turn(f"picture, {ours[0]} / {name}", ours[1], samples)


def _compiled(content: Content) -> Iterator[Figure]:
    found = content["results"]
    parts = {f"UNet, {of['rows']} rows": of["samples_ms"] for of in found["calls"]}
    for name, samples in {"picture": found["pictures_ms"], **parts}.items():
        yield by_turn(f"{name}, compiled / eager", samples["compiled"], samples["eager"])
    ours, theirs = (found["pictures_ms"][side] for side in ("Tessera", "compiled"))
    yield by_turn("picture, Tessera / compiled", ours, theirs)


def _locality(content: Content) -> Iterator[Figure]:
    """What p95 of a policy is, of locality's in the same round."""
    p95: dict[str, list[float]] = {}
    for run in sorted(content["results"], key=lambda run: run["round"]):
        p95.setdefault(run["policy"], []).append(run["p95_ms"])
    ours = p95.pop("locality")
    for policy, theirs in p95.items():
        yield by_turn(f"p95, {policy} / locality", theirs, ours)


def _validated(content: Content) -> Iterator[Figure]:
    rounds = content["results"]["rounds"]
    for workload in dict.fromkeys(of["workload"] for of in rounds):
        for share in ("p50", "p95"):
            ratios = [of[share]["ratio"] for of in rounds if of["workload"] == workload]
            name = f"{workload}, {share}, simulated / real"
            yield Figure(name, quartiles_of(ratios), len(ratios))


def _fleet_cost(content: Content) -> Iterator[Figure]:
    for row in content["results"]:
        yield Figure(f"{row['what']}, ms", quartiles_of(row["ms"]), len(row["ms"]))


def _fleet_hop(content: Content) -> Iterator[Figure]:
    for row in content["results"]:
        name = f"{row['protocol']}, {row['side']} x {row['side']}, front - direct, ms"
        more = differences(row)
        sides = (statistics.median(row["front_ms"]), statistics.median(row["direct_ms"]))
        yield Figure(name, quartiles_of(more), len(more), sides)


def _metrics_cost(content: Content) -> Iterator[Figure]:
    spent = content["results"]["us"]
    yield Figure("metrics of a step, us", quartiles_of(spent), len(spent))


def _startup(content: Content) -> Iterator[Figure]:
    for what, seconds in content["results"]["seconds"].items():
        yield Figure(f"{what}, s", quartiles_of(seconds), len(seconds))
    cpu = content["results"]["cpu_s"]["together"]
    yield Figure("CPU time until ready, s", quartiles_of(cpu), len(cpu))


_EDITS = Form(_edits, ("rounds", "steps", "quality"))
_BASELINES = Form(_baselines, ("scenario", "rounds", "requests"))
_SWITCH = Form(_switch, ("config", "rank", "rounds"))
FORMS: dict[str, Form] = {
    "cpu": Form(_pictures, ("rounds", "steps"), ("edit_rounds",)),
    "edit_latency_demo": _EDITS,
    "edit_latency_demo_balanced": _EDITS,
    "edit_latency_sdxl": _EDITS,
    "profile": Form(_profile, ("turns", "steps")),
    "gateway": Form(_gateway, ("rounds", "turns", "steps")),
    "previews": Form(_previews, ("turns",)),
    "controls": Form(_controls),
    "optimum": Form(_optimum, ("turns", "steps")),
    "compiled": Form(_compiled, ("turns", "steps")),
    "devices": Form(_devices, ("turns",)),
    "mixed_adapters": Form(
        _adapters, ("steps", "share", "blocks", "requests", "rank"), ("capacity",)
    ),
    "restarts": Form(_restarts, ("runs",)),
    "baselines": _BASELINES,
    "baselines_text": _BASELINES,
    "baselines_add-ons": _BASELINES,
    "baselines_edits": _BASELINES,
    "lora_switch_sd15": _SWITCH,
    "lora_switch_sdxl": _SWITCH,
    "fleet_cost": Form(_fleet_cost, ("rounds",)),
    "fleet_hop": Form(_fleet_hop, ("rounds",)),
    "metrics_cost": Form(_metrics_cost, ("rounds",)),
    "startup": Form(_startup, ("runs",)),
    "fleet_locality": Form(_locality, ("requests", "rounds", "steps")),
    "fleet_validate": Form(_validated, ("workers", "requests", "steps", "busy", "rounds")),
    "lora_crossover": Form(_crossover, ("steps", "rounds")),
}
"""By the name of the report."""

_ONE_RUN = "its samples are the requests of a run, so their spread is not that between runs"
_SIMULATED = "it is simulated, and comes out the same"
_COMPUTED = "it is computed, and comes out the same"
_OTHER_EDITS = "its samples are different edits, so their spread is not that between runs"
_SEEDED = "its pictures have their seeds, and come out the same"
WITHOUT: dict[str, str] = {
    "overload": _ONE_RUN,
    "estimate": _ONE_RUN,
    "trace": _ONE_RUN,
    "ablations": _ONE_RUN,
    "aiperf": _ONE_RUN,
    "attention_only": _OTHER_EDITS,
    "edit_controls": _OTHER_EDITS,
    "edit_loras": _OTHER_EDITS,
    "edit_policies": _OTHER_EDITS,
    "edit_policies_grid": _OTHER_EDITS,
    "edit_quality": _OTHER_EDITS,
    "order_sim": _SIMULATED,
    "client_alone": "it has sizes, not times",
    "sizes": _COMPUTED,
    "cache_bytes": _COMPUTED,
    "fleet_memory": "each of its figures is of a single turn",
    "growth": "many of its figures are of a single turn",
    "second_day": "it is the comparison itself",
    "lora_quality": _SEEDED,
    "fleet_faults": _ONE_RUN,
    "fleet_scale": _ONE_RUN,
    "fleet_sim": _SIMULATED,
}
"""Why a report cannot be compared."""

"""Tables of what is measured on traces, and of profiles; see `bench.tables`."""

from __future__ import annotations

import statistics
from collections.abc import Callable

from bench.markdown import NOT_YET, if_measured, markdown, two
from bench.profile import medians, outside_share


def ablations() -> str:
    """What each mechanism is worth."""
    if (content := if_measured("ablations")) is None:
        return NOT_YET.format("ablations")
    rows = []
    for name, found in content["results"].items():
        sides = found["sides"]
        product = next(iter(sides.values()))["latency_s"]["p95"]
        for side, of in sides.items():
            latency, rounds = of["latency_s"], of["p95_of_rounds"]
            rows.append(
                [
                    f"{name} ({found['scenario']}, {found['rate']:.2f}/s)",
                    side,
                    two(latency["p50"]),
                    f"{two(latency['p95'])} ({two(min(rounds))}-{two(max(rounds))})",
                    two(latency["p95"] / product),
                    two(of["capacity"]),
                    found["date"],
                ]
            )
    head = ("what", "side", "p50, s", "p95, s (of rounds)", "p95 / the first side's")
    return markdown((*head, "pictures/s, all at once", "measured"), rows)


def attention_only() -> str:
    """The published method of edits."""
    if (content := if_measured("attention_only")) is None:
        return NOT_YET.format("attention-only")
    rows = [
        [
            side,
            *(f"{of['ms'][share]:.0f} ms" for share in ("p50", "p95")),
            two(of["pictures_per_s"]),
            f"{of['ssim']:.3f}",
        ]
        for side, of in content["results"]["sides"].items()
    ]
    return markdown(("edits", "p50", "p95", "pictures/s", "SSIM to dense, median"), rows)


def order_sim() -> str:
    """Whose turn it is, simulated."""
    if (content := if_measured("order_sim")) is None:
        return NOT_YET.format("order-sim")
    results = content["results"]
    rows = [
        [side, *(two(of[side][figure]) for of in results.values() for figure in ("mean", "p95"))]
        for side in next(iter(results.values()))
    ]
    heads = [f"{figure} at {load}, s" for load in results for figure in ("mean", "p95")]
    return markdown(("order", *heads), rows)


def profile() -> str:
    """Where the milliseconds of a picture go."""
    if (content := if_measured("profile")) is None:
        return NOT_YET.format("profile")
    results = content["results"]
    columns = {name: medians(turns) for name, turns in results.items()}
    rows = [
        [part, *(f"{column[part]:.1f}" for column in columns.values())]
        for part in next(iter(columns.values()))
    ]
    shares = [statistics.median(map(outside_share, turns)) for turns in results.values()]
    rows.append(["**outside the engines**", *(f"**{100 * share:.1f} %**" for share in shares)])
    return markdown(("milliseconds of a picture", *columns), rows)


TRACE_TABLES: dict[str, Callable[[], str]] = {
    "ablations": ablations,
    "attention-only": attention_only,
    "order-sim": order_sim,
    "profile": profile,
}
"""By the name in a text."""

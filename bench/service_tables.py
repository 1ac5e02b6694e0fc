"""Tables of the gateway, and of what jobs foretell; see `bench.tables`."""

from __future__ import annotations

import statistics
from collections.abc import Callable

from bench import report
from bench.markdown import NOT_YET, if_measured, markdown, spread
from bench.sampled import quartiles_of


def gateway() -> str:
    """What the gateway adds to a request."""
    if (content := if_measured("gateway")) is None:
        return NOT_YET.format("gateway")
    found = content["results"]["overhead"]
    sides = {
        "SDK, ms": spread(found["sdk_ms"]),
        "gateway, ms": spread(found["gateway_ms"]),
        "difference within a round, ms": spread(found["difference_ms"]),
        "processor time of the gateway, ms": f"{found['processor_ms']:.1f}",
    }
    run = f"{found['steps']} steps, {found['rounds']} rounds, {content['date']}"
    return markdown(("run", *sides), [[run, *sides.values()]])


def watched() -> str:
    """What it costs a full batch to be watched."""
    if (content := if_measured("gateway")) is None:
        return NOT_YET.format("gateway")
    found = content["results"]["watched"]
    cells = [spread(found[name]) for name in ("tick_ms", "watched_tick_ms")]
    return markdown(
        ("connections", "tick, ms", "tick that is watched, ms", "ratio"),
        [[str(found["connections"]), *cells, spread(found["ratio"], 2)]],
    )


def restarts() -> str:
    """Until a server serves again whose processes were killed."""
    if (content := if_measured("restarts")) is None:
        return NOT_YET.format("restarts")
    rows = [
        [what, f"{statistics.median(values):.1f} ({min(values):.1f} to {max(values):.1f})"]
        for what, values in content["results"].items()
    ]
    return markdown(("", f"seconds, {content['settings']['runs']} rounds"), rows)


def aiperf() -> str:
    """What AIPerf measured at the gateway."""
    if (content := if_measured("aiperf")) is None:
        return NOT_YET.format("aiperf")
    rows = []
    for kind, run in content["results"].items():
        latency = run["latency_ms"]
        cells = [f"{latency[name]:,.0f}" for name in ("avg", "p50", "p95", "min", "max")]
        rate = f"{run['requests_per_s']:.2f}"
        rows.append([f"`{kind}`", f"{run['requests']}", f"{run['errors']}", *cells, rate])
    head = ("`--endpoint-type`", "answered", "errors", "mean, ms", "p50", "p95", "least", "most")
    return markdown((*head, "requests/s"), rows)


def ready() -> str:
    """README's sentence: how long a server takes to start, and to stop where that was measured."""
    content = report.read("restarts")
    found, count = content["results"], content["settings"]["runs"]
    stops = f", and stops within {max(found['stop']):.1f} s" if "stop" in found else ""
    start = spread(quartiles_of(found["start"]))
    return (
        f"A server on the demo bundle is ready after {start} s{stops} "
        f"({count} rounds of `{content['command']}`, {content['date']})."
    )


def estimate() -> str:
    """How far `seconds_left` is from the truth."""
    if (content := if_measured("estimate")) is None:
        return NOT_YET.format("estimate")
    rows = [
        [
            found["jobs"],
            str(found["answers"]),
            spread([100 * error for error in found["relative_error"]], 0) + " %",
        ]
        for found in content["results"]
    ]
    return markdown(("jobs at once (8 have a slot)", "answers", "error, median (quartiles)"), rows)


SERVICE_TABLES: dict[str, Callable[[], str]] = {
    "gateway": gateway,
    "watched": watched,
    "restarts": restarts,
    "ready": ready,
    "aiperf": aiperf,
    "estimate": estimate,
}
"""By the name in a text."""

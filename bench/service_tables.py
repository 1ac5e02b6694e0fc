"""Tables of the gateway, and of what jobs foretell; see `bench.tables`."""

from __future__ import annotations

import statistics
from collections.abc import Callable

from bench import report
from bench.cache_bytes import cells
from bench.markdown import NOT_YET, by_command, if_measured, markdown, spread
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


def startup() -> str:
    """Times of start and stop."""
    if (content := if_measured("startup")) is None:
        return NOT_YET.format("startup")
    seconds = content["results"]["seconds"]
    cpu = {"CPU time until ready, all processes": content["results"]["cpu_s"]["together"]}
    rows = [
        [
            what,
            f"{statistics.median(of):.2f} ({min(of):.2f} to {max(of):.2f})",
            str(len(of)),
        ]
        for what, of in (seconds | cpu).items()
    ]
    return by_command(content, markdown(("", "seconds", "runs"), rows))


def metrics_cost() -> str:
    """What the metrics of a step cost."""
    if (content := if_measured("metrics_cost")) is None:
        return NOT_YET.format("metrics-cost")
    spent, tick = content["results"]["us"], content["settings"]["tick_ms"]
    share = f"{statistics.median(spent) / tick / 10:.2f} %"
    found = [spread(quartiles_of(spent)), f"{tick:g} ms", share]
    return by_command(content, markdown(("us a step", "of a tick of", "share"), [found]))


def cache_bytes() -> str:
    """Bytes of a recording of published networks."""
    if (content := if_measured("cache_bytes")) is None:
        return NOT_YET.format("cache-bytes")
    rows = [[row["form"], *cells(row)] for row in content["results"]]
    head = ("form", *content["results"][0]["bytes"])
    return by_command(content, markdown(head, rows))


def sizes() -> str:
    """Parameters and bytes of bundles of published networks."""
    if (content := if_measured("sizes")) is None:
        return NOT_YET.format("sizes")
    rows = [
        [
            row["variant"],
            row["network"],
            f"{row['parameters']:,}",
            *(f"{size / 1e9:.2f}" for size in row["bytes"].values()),
        ]
        for row in content["results"]
    ]
    precisions = (f"{name}, GB" for name in content["results"][0]["bytes"])
    head = ("variant", "network", "parameters", *precisions)
    return by_command(content, markdown(head, rows))


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
    "startup": startup,
    "metrics-cost": metrics_cost,
    "cache-bytes": cache_bytes,
    "sizes": sizes,
    "ready": ready,
    "aiperf": aiperf,
    "estimate": estimate,
}
"""By the name in a text."""

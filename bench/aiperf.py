"""AIPerf against the gateway: runs it as docs/internals/measurements.md says, and reads its export.

    python -m bench aiperf [--program out/aiperf/bin/aiperf] [--requests 24] [--steps 10]

AIPerf 0.13.0 needs other versions than we do, so it is in an environment of its own:

    python -m venv out/aiperf && out/aiperf/bin/pip install aiperf==0.13.0

Writes `bench/results/aiperf.json`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from bench import report
from bench.server import DEMO_BUNDLE, ROOT, serving
from tests.samples.gateways import gateway

FOLDER = ROOT / "out" / "bench-aiperf"
PROGRAM = ROOT / "out" / "aiperf" / "bin" / "aiperf"
EXPORT = "profile_export_aiperf.json"
KINDS = ("image-generation", "image-edit")
"""Values of `--endpoint-type`."""
_LATENCIES = ("avg", "p50", "p95", "min", "max")
console = Console(highlight=False)


@dataclass(frozen=True)
class Run:
    """One run of AIPerf.

    Attributes:
        version: of AIPerf.
        requests, errors: how many were answered with a picture, and how many were not.
        latency_ms: mean, two percentiles, least and most milliseconds.
        requests_per_s: answered ones.
    """

    version: str
    requests: int
    errors: int
    latency_ms: dict[str, float]
    requests_per_s: float


def main() -> None:
    """Run both kinds, print, write the report."""
    parser = argparse.ArgumentParser(description="AIPerf against the gateway")
    parser.add_argument("--program", type=Path, default=PROGRAM)
    parser.add_argument("--requests", type=int, default=24)
    parser.add_argument("--at-once", type=int, default=4)
    parser.add_argument("--steps", type=int, default=10, help="denoising steps of a picture")
    parser.add_argument("--out", type=Path, help="another file")
    options = parser.parse_args()
    if not options.program.exists():
        parser.error(f"--program is {options.program}, which does not exist; see `bench/aiperf.py`")
    machine = report.describe_machine(len(os.sched_getaffinity(0)))
    FOLDER.mkdir(parents=True, exist_ok=True)
    settings = {name: getattr(options, name) for name in ("requests", "at_once", "steps")}
    found = {}
    with (
        serving(DEMO_BUNDLE, FOLDER / "log") as server,
        gateway(server.grpc, FOLDER / "gateway-log") as running,
    ):
        for kind in KINDS:
            line = arguments(kind, running.url, settings, str(DEMO_BUNDLE / "tokenizer"))
            export = FOLDER / kind
            subprocess.run([options.program, *line, "--artifact-dir", export], check=True)
            found[kind] = asdict(read_export((export / EXPORT).read_text()))
            console.print(kind, found[kind])
    report.write("aiperf", settings, found, machine=machine, out=options.out)


def arguments(kind: str, url: str, settings: Mapping[str, int], tokenizer: str) -> list[str]:
    """The command line of AIPerf without the program, and without where it writes."""
    steps = settings["steps"]
    same = ["profile", "--model", "demo", "--url", url, "--tokenizer", tokenizer]
    same += ["--endpoint-type", kind, "--concurrency", str(settings["at_once"])]
    same += ["--request-count", str(settings["requests"]), "--synthetic-input-tokens-mean", "12"]
    if kind == "image-generation":
        more = {"size": "128x128", "tessera": {"steps": steps}}
        return [*same, "--extra-inputs", json.dumps(more)]
    image = ["--image-width-mean", "128", "--image-height-mean", "128", "--image-format", "png"]
    return [*same, *image, "--extra-inputs", f"tessera[steps]:{steps}"]


def read_export(text: str) -> Run:
    """What a file `profile_export_aiperf.json` says, of AIPerf 0.13 (its schema 1.4).

    Raises:
        ValueError: the run ended early, no request was answered, or a unit is another one.
    """
    content = json.loads(text)
    if content.get("was_cancelled") or not content.get("is_complete", True):
        raise ValueError(f"the run ended early: {content.get('incomplete_reason', 'cancelled')}")
    if "request_latency" not in content:
        raise ValueError(f"no request was answered: {content.get('error_summary', [])}")
    latency = _metric(content, "request_latency", "ms")
    errors = content.get("error_request_count", {"avg": 0})
    return Run(
        version=content["aiperf_version"],
        requests=int(_metric(content, "request_count", "requests")["avg"]),
        errors=int(errors["avg"]),
        latency_ms={name: round(latency[name], 1) for name in _LATENCIES},
        requests_per_s=round(_metric(content, "request_throughput", "requests/sec")["avg"], 3),
    )


def _metric(content: Mapping[str, Any], name: str, unit: str) -> Mapping[str, float]:
    found: Mapping[str, Any] = content[name]
    if found["unit"] != unit:
        raise ValueError(f"{name} is in {found['unit']!r}; accepted: {unit!r}")
    return found


if __name__ == "__main__":
    main()

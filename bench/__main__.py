"""Every benchmark by its name.

python -m bench                 list them
python -m bench NAME [options]  run one; `NAME --help` lists its options
python -m bench quick           those of `make bench`, one after the other
python -m bench all             those of `make bench-all`

One that fails does not end the run of several: what failed is named at the end, with exit code 1.
"""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Bench:
    """One benchmark.

    Attributes:
        module: has a function `main`, which reads the command line.
        line: what it measures.
        options: with which it runs unless others are given, which replace all of them.
        by: `quick` if `make bench` runs it, `all` if only `make bench-all` does; "" if it wants
            options, Ray, or as long as one likes.
    """

    module: str
    line: str
    options: tuple[str, ...] = ()
    by: str = "all"


LOADS = ("0.3", "0.6", "0.8", "0.95")
LOADS_OPTIONS = ("--shares", *LOADS, "--equal", *LOADS, "--rounds", "1", "--requests", "16")
BENCHES = {
    "pictures": Bench(
        "run", "pictures and edits against diffusers, load, one UNet step", (), "quick"
    ),
    "edits": Bench(
        "edit_latency", "edits through Triton against diffusers", ("--rounds", "9"), "quick"
    ),
    "ablations": Bench("ablations", "what each mechanism is worth, on a trace"),
    "order-sim": Bench("order_sim", "orders of requests, simulated"),
    "profile": Bench("profile", "where the milliseconds of a picture go"),
    "attention-only": Bench("attention_only", "edits by a published method, in eager torch"),
    "baselines": Bench("baselines", "a trace against a Triton model around a diffusers pipeline"),
    **{
        f"baselines-{scenario}": Bench(
            "baselines",
            f"the same, all loads, {what}",
            ("--scenario", scenario, *LOADS_OPTIONS),
        )
        for scenario, what in {
            "text": "text to image with mixed steps",
            "add-ons": "all with add-ons",
            "edits": "masked edits",
        }.items()
    },
    "compiled": Bench("compiled", "what torch.compile brings diffusers on a CPU"),
    "trace": Bench("replay", "a trace of published workloads, sent open-loop"),
    "edits-sdxl": Bench(
        "edit_latency",
        "the same on SDXL's topology",
        ("sdxl", "--rounds", "2", "--steps", "10", "--ratios", "0.05", "0.2", "0.35"),
    ),
    "edit-quality": Bench("edit_quality", "SSIM of sparse edits to dense ones"),
    "edit-policies": Bench("edit_policies", "what each quality of edits is worth, by mask"),
    "edit-loras": Bench("edit_loras", "sparse edits with LoRAs, by what has been recorded"),
    "edit-controls": Bench("edit_controls", "sparse edits with a ControlNet"),
    "adapters": Bench("mixed_adapters", "requests with different LoRAs, by path"),
    "lora-switch": Bench("lora_switch", "a change of LoRAs"),
    "lora-crossover": Bench("lora_crossover", "when the side path beats a refit"),
    "lora-quality": Bench("lora_quality", "pictures that begin without their LoRAs"),
    "controls": Bench("controls", "what ControlNets add to a step"),
    "devices": Bench("devices", "a step on several devices"),
    "gateway": Bench("gateway", "what the gateway adds to a request"),
    "estimate": Bench("estimate", "how far seconds_left of a job is from the truth"),
    "previews": Bench("previews", "previews: cost and likeness"),
    "startup": Bench("startup", "from start to readiness"),
    "sizes": Bench("sizes", "bundles: bytes and memory"),
    "cache-bytes": Bench("cache_bytes", "bytes of recordings of published networks"),
    "growth": Bench("growth", "cost of many LoRAs, templates and waiting requests"),
    "restarts": Bench("restarts", "until a server whose processes were killed serves again"),
    "overload": Bench("overload", "three times as many requests as a server can take"),
    "fleet": Bench("fleet_report", "a fleet, simulated"),
    "fleet-cost": Bench("fleet_cost", "what a fleet's parts cost"),
    "fleet-locality": Bench("fleet_locality", "what locality is worth on real workers"),
    "fleet-validate": Bench("fleet_validate", "the simulation against real workers"),
    "fleet-scale": Bench("fleet_scale", "a fleet under a step of load", by=""),
    "fleet-faults": Bench("fleet_faults", "faults of a fleet under traffic", by=""),
    "fleet-memory": Bench("fleet_memory", "memory of a front while requests wait"),
    "fleet-hop": Bench("fleet_hop", "what the way through a front adds"),
    "metrics-cost": Bench("metrics_cost", "what metrics add to a step"),
    "soak": Bench("soak.__main__", "mixed traffic with faults", by=""),
    "optimum": Bench("against_optimum", "pictures against optimum's pipelines", by=""),
    "aiperf": Bench("aiperf", "AIPerf against the gateway", by=""),
    "client-alone": Bench("client_alone", "the client's size, by Python", by=""),
    "again": Bench("again", "a report's benchmark on another day, compared with it", by=""),
    "tables": Bench(
        "tables", "tables and figures of README and docs, from the reports", (), "quick"
    ),
}
"""In the order of the list."""


def main() -> None:
    """List, or run."""
    name, *options = sys.argv[1:] or [""]
    if name in ("", "-h", "--help"):
        Console().print(listing())
    elif name in ("quick", "all") and not options:
        chosen = [each for each, bench in BENCHES.items() if bench.by in ("quick", name)]
        failed = run_each({each: [sys.executable, "-m", "bench", each] for each in chosen})
        if failed:
            sys.exit(f"failed: {', '.join(failed)}")
    elif name in BENCHES:
        run(name, options)
    else:
        sys.exit(
            f"NAME is {' '.join([name, *options])!r}; accepted: quick, all, {', '.join(BENCHES)}"
        )


def run_each(lines: Mapping[str, Sequence[str]]) -> list[str]:
    """Run commands one after the other, whatever comes of them; the names of those that failed.
    Each is in a process of its own, as when it runs alone.
    """
    return [name for name, line in lines.items() if subprocess.run(line, check=False).returncode]


def run(name: str, options: list[str]) -> None:
    """Run one benchmark in this process, with its own options if none are given."""
    sys.argv[1:] = options or BENCHES[name].options
    sys.argv[0] = f"bench {name}"
    importlib.import_module(f"bench.{BENCHES[name].module}").main()


def listing() -> Table:
    """Names, and what they measure."""
    table = Table("name", "what it measures", "run by", title="python -m bench NAME")
    runs = {"quick": "make bench", "all": "make bench-all", "": ""}
    for name, bench in BENCHES.items():
        table.add_row(name, bench.line, runs[bench.by])
    return table


if __name__ == "__main__":
    main()

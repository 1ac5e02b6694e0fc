"""Tables of LoRAs and of whole edits; see `bench.tables`."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from typing import Any

from bench import report
from bench.markdown import markdown, spread
from bench.sampled import by_turn

RATIOS = (0.02, 0.05, 0.11, 0.2, 0.35, 0.6)
SSIM_WAY = "2 dense steps, wider by 1"
"""What `fast` does, in the report of quality."""
WAITED = (1, 2, 4, 6, 8, 12, 20)


def whole_edits() -> str:
    """Sparse edits as a share of diffusers' time, and their likeness to dense ones."""
    names = {
        "demo, `fast` / diffusers": "edit_latency_demo",
        "demo, `balanced` / diffusers": "edit_latency_demo_balanced",
        "SDXL's topology, sparse / diffusers": "edit_latency_sdxl",
    }
    rows = []
    for label, name in names.items():
        content = report.read(name)
        levels = {level["ratio"]: level for level in content["results"]["levels"]}
        shares = [to_diffusers(levels[r]) if r in levels else "" for r in RATIOS]
        rows.append([f"{label}, {content['date']}", *shares])
    cases = [case for case in report.read("edit_quality")["results"] if case["way"] == SSIM_WAY]
    medians = [statistics.median(c["ssim"] for c in cases if c["ratio"] == r) for r in RATIOS]
    rows.append(["SSIM to the dense edit, median", *(f"{value:.3f}" for value in medians)])
    return markdown(("mask", *(f"{ratio:g}" for ratio in RATIOS)), rows)


def to_diffusers(level: Mapping[str, Any]) -> str:
    """The time of a sparse edit as a share of diffusers' within a turn: median and quartiles."""
    sparse, other = (level["samples_ms"][side] for side in ("sparse", "diffusers"))
    return spread(by_turn("", sparse, other).quartiles, 2)


def lora_switch() -> str:
    """A change of LoRAs against diffusers."""
    found = [report.read(f"lora_switch_{config}")["results"] for config in ("sdxl", "sd15")]
    labels = {
        "cold": "file read and checked anew, merged, put in",
        "warm": "file parsed before (read ahead)",
        "kept": "merged weights kept (`--adapter-memory`; SDXL: 9 GB a set)",
        "restore": "base put back",
    }
    rows = []
    for name, label in labels.items():
        row = [label]
        for of in found:
            ratio = of["ratio"].get(name)
            row += [f"{of['tessera'][name]:.0f}", f"{ratio:.1f}" if ratio else ""]
        rows.append(row)
    diffusers = ["diffusers"]
    for of in found:
        diffusers += [f"{of['diffusers']['load']:.0f} + {of['diffusers']['unfuse']:.0f}", ""]
    head = [""]
    for size, of in zip(("SDXL (2.6 G parameters", "SD1.5 (860 M"), found, strict=True):
        head += [f"{size}, file of {of['prepare']['file_mb']:.0f} MB)", "times faster"]
    return markdown(head, [*rows, diffusers])


def lora_crossover() -> str:
    """A step by the side path, of a step by turns."""
    levels = report.read("lora_crossover")["results"]["levels"]
    sets = sorted({level["sets"] for level in levels})
    labels = {"linear": "linear layers"}
    rows = []
    for layers, rank in dict.fromkeys((level["layers"], level["rank"]) for level in levels):
        same = {e["sets"]: e for e in levels if (e["layers"], e["rank"]) == (layers, rank)}
        ratios = [f"{same[n]['side_ms'] / same[n]['turns_ms']:.2f}" for n in sets]
        refit = statistics.median(e["refit_ms"] for e in same.values())
        label = labels.get(layers, "these and 3x3 convolutions")
        rows.append([label, f"{rank}", *ratios, f"{refit:.0f} ms"])
    counts = [f"{n} set{'' if n == 1 else 's'}" for n in sets]
    return markdown(("LoRAs on", "rank", *counts, "a refit"), rows)


def mixed_adapters() -> str:
    """Requests with different LoRAs, by path."""
    results = report.read("mixed_adapters")["results"]
    rows = []
    for path in ("refit", "side", "auto"):
        found = results[path]
        ordered = sorted(found["latencies_ms"])
        p50, p95 = (
            ordered[min(int(share * len(ordered)), len(ordered) - 1)] / 1e3 for share in (0.5, 0.95)
        )
        went = ", ".join(f"{name} {count}" for name, count in sorted(found["paths"].items()))
        batch = statistics.mean(found["batches"])
        rows.append([f"`{path}`", f"{p50:.2f} s", f"{p95:.1f} s", f"{batch:.1f}", went])
    return markdown(("`--lora-path`", "p50", "p95", "mean batch", "went by"), rows)


def lora_bounded() -> str:
    """Pictures that begin without their LoRAs."""
    found = {(row["style"], row["without"]): row for row in report.read("lora_quality")["results"]}
    styles = list(dict.fromkeys(style for style, _ in found))
    rows = [
        [
            style,
            *(
                f"{statistics.median(found[style, n]['ssim']):.3f}, "
                f"{100 * found[style, n]['styled']:.0f} %"
                for n in WAITED
            ),
        ]
        for style in styles
    ]
    named = {4: "4 (default)", 20: "20 (never)"}
    return markdown(("K", *(named.get(n, f"{n}") for n in WAITED)), rows)


LORA_TABLES: dict[str, Callable[[], str]] = {
    "whole-edits": whole_edits,
    "lora-switch": lora_switch,
    "lora-crossover": lora_crossover,
    "mixed-adapters": mixed_adapters,
    "lora-bounded": lora_bounded,
}
"""By the name in a text."""

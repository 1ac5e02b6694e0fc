"""What `tessera-build` shows of its work, within 80 columns."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from tessera.contract import SCHEDULERS, scheduler_list
from tessera.networks.schedulers import usable
from tessera.terminal.console import new_table

if TYPE_CHECKING:
    from tessera.manifest import Manifest, Verification
    from tessera_build.compile import Job


def jobs_lines(jobs: Sequence[Job]) -> Iterator[str]:
    """Each plan in a line, and below it the shapes of its inputs: the smallest, the likeliest and
    the largest. Those of skips and sites are only counted, since they follow from the others.
    """
    rows = [
        (name, *("x".join(map(str, size)) for size in vars(shapes).values()))
        for job in jobs
        for name, shapes in _shown(job).items()
    ]
    heading = ("input", "smallest", "likeliest", "largest")
    widths = [max(map(len, column)) for column in zip(heading, *rows, strict=True)]
    cells = iter(rows)
    yield "  " + _line(heading, widths)
    for job in jobs:
        state = "there" if job.done else "to build"
        yield f"{job.key.graph}, {job.key.precision}: {state}"
        shown = _shown(job)
        for _ in shown:
            yield "  " + _line(next(cells), widths)
        if hidden := len(job.key.profile) - len(shown):
            yield f"  and {hidden} inputs whose shapes follow from these"


def _shown(job: Job) -> Mapping[str, object]:
    """Without what the encoder half gives (`skip_0`), and what a site needs (`halo.conv_in`)."""
    shapes = job.key.profile.items()
    return {n: each for n, each in shapes if not n.startswith("skip_") and "." not in n}


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    padded = (cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
    return "  ".join(padded).rstrip()


def sampling_lines(folder: Path, manifest: Manifest) -> Iterator[str]:
    """How a bundle's network is sampled, and with what."""
    config = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    kind = "EDM" if config["_class_name"].startswith("EDM") else config.get("prediction_type")
    zero = ", zero terminal SNR" if config.get("rescale_betas_zero_snr") else ""
    yield f"  the network predicts: {kind or 'epsilon'}{zero}"
    offered = scheduler_list(manifest.offered)
    yield f"  samplers: {offered}; default {manifest.defaults.scheduler}"
    refused: dict[str, list[str]] = {}
    for name, reason in usable(config).items():
        if reason and SCHEDULERS[name].edm == (kind == "EDM"):
            refused.setdefault(reason, []).append(name)
    for reason, names in refused.items():
        yield f"  not {scheduler_list(names)}: {reason}"


def verification_table(
    title: str, found: Mapping[str, Verification], accepted: Mapping[str, float]
) -> Table:
    """How far each graph's engine is from torch, beside what is accepted."""
    numbers = ("inputs", "difference", "accepted")
    table = new_table("graph", *numbers, "", title=title, numbers=numbers)
    for name, result in found.items():
        well = result.difference <= accepted[name]
        verdict = Text("well", "green") if well else Text("differs", "red")
        difference, limit = f"{result.difference:.1e}", f"{accepted[name]:.0e}"
        table.add_row(name, str(result.cases), difference, limit, verdict)
    return table

"""Figures of the docs, drawn again from the reports without a run: a part of `bench tables`.

A figure keeps the digest of the results that it was drawn from, so it is drawn again only when they
have changed. It has few colours, which saves bytes, and it never grows: one that would is not
replaced. Figures that need more than their report has are drawn by their benchmarks only.
"""

from __future__ import annotations

import hashlib
import io
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from bench import (
    baselines,
    edit_policies,
    edit_quality,
    fleet_report,
    fleet_scale,
    growth,
    lora_quality,
    mixed_adapters,
    profile,
    replay,
    report,
)
from bench.plots import description_of, write


@dataclass(frozen=True)
class Drawing:
    """How a figure is drawn.

    Attributes:
        report: name of the report with its results.
        file: of the figure.
        draw: a function of results and file.
    """

    report: str
    file: Path
    draw: Callable[[Any, Path], None]


def _baselines(results: Any, file: Path) -> None:
    replay.draw(baselines.latencies(results["runs"]), file)


def _adapters(results: Any, file: Path) -> None:
    found = {path: mixed_adapters.Measured(**of) for path, of in results.items()}
    mixed_adapters.draw(found, file)


def _rows(module: Any) -> Callable[[Any, Path], None]:
    """A drawing by a module whose results are rows of its `Measured`."""
    return lambda rows, file: module.draw_curves([module.Measured(**row) for row in rows], file)


DRAWINGS = (
    Drawing("growth", growth.FIGURE, growth.draw),
    Drawing("profile", profile.FIGURE, profile.draw_bars),
    Drawing("baselines", baselines.FIGURE, _baselines),
    Drawing("mixed_adapters", mixed_adapters.FIGURE, _adapters),
    Drawing("edit_policies", edit_policies.FIGURE, _rows(edit_policies)),
    Drawing("edit_quality", edit_quality.FIGURE, _rows(edit_quality)),
    Drawing("lora_quality", lora_quality.FIGURE, _rows(lora_quality)),
    Drawing("fleet_sim", fleet_report.POLICIES_FIGURE, fleet_report.draw_policies),
    Drawing("fleet_sim", fleet_report.LIMITS_FIGURE, fleet_report.draw_limits),
    Drawing("fleet_scale", fleet_scale.FIGURE, fleet_scale.draw),
)


def redraw(drawings: Sequence[Drawing] = DRAWINGS) -> list[str]:
    """Draw what is not of the latest results; what was done with each, a sentence."""
    done = []
    for drawing in drawings:
        results = results_of(drawing.report)
        if results is None or digest_of(drawing.file) == digest(results):
            continue
        content, file = drawn(drawing, results), drawing.file
        before = file.stat().st_size if file.exists() else None
        if before is not None and len(content) > before:
            done.append(f"not drawn: {file.name} would grow from {before} to {len(content)} bytes")
            continue
        file.write_bytes(content)
        done.append(f"drawn: {file.name}")
    return done


def drawn(drawing: Drawing, results: Any) -> bytes:
    """A figure as a WebP that says the digest of its results."""
    with tempfile.TemporaryDirectory() as folder:
        file, sink = Path(folder) / "figure.webp", io.BytesIO()
        drawing.draw(results, file)
        with Image.open(file) as picture:
            write(picture, sink, form="WEBP", says=digest(results))
    return sink.getvalue()


def digest(results: Any) -> str:
    """Of results, however their file is laid out."""
    return hashlib.sha256(json.dumps(results).encode()).hexdigest()


def digest_of(file: Path) -> str | None:
    """The digest of the results that a figure was drawn from, None if it does not say."""
    return description_of(file) if file.exists() else None


def results_of(name: str) -> Any:
    """The results of a report, None if there is none."""
    return report.read(name)["results"] if report.path_of(name).exists() else None

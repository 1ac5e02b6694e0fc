"""Table, JSON and figure of a soak."""

from __future__ import annotations

import json
import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.plots import save
from bench.soak.faults import Fault
from bench.soak.traffic import FAULTY, Happened
from bench.soak.watch import OURS, Seen, growth

_GROWTH = 0.02
"""From this growth on a run has failed."""


Span = tuple[float, float]
"""From and to, as `time.monotonic` has it."""


@dataclass(frozen=True)
class Soak:
    """Everything that was found.

    Attributes:
        minutes: how long.
        began: as `time.monotonic` has it.
        happened: every request.
        faults: every fault.
        seen: every look.
        left: what the server left behind when it had ended.
        unfinished: files that killed processes have left in the folder of templates, to be removed
            when they are an hour old.
        full: whether the disk was filled, too.
        calm: two spans of time without faults, before them and after them, whose looks are
            compared: by then all processes have done every kind of work. `None` of a run that is
            too short to speak of growth.
        ended: how often tritonserver ended by itself.
    """

    minutes: float
    began: float
    happened: Sequence[Happened]
    faults: Sequence[Fault]
    seen: Sequence[Seen]
    left: Sequence[str]
    full: bool
    calm: tuple[Span, Span] | None = None
    ended: int = 0
    unfinished: int = 0

    @property
    def faulty(self) -> list[Happened]:
        """Requests that ended as none should."""
        return [each for each in self.happened if each.outcome in FAULTY]

    @property
    def corrupted(self) -> list[Happened]:
        """Requests of which something did not arrive as it was sent, and was found to be so."""
        return [h for h in self.happened if h.outcome == "unavailable" and h.note]

    def growth(self, value: Callable[[Seen], float | None]) -> float | None:
        """From one calm span to the other, of the looks at a whole server that have a value."""
        if self.calm is None:
            return None
        before, after = (
            [
                found
                for each in self.seen
                if each.whole and since <= each.at <= until
                if (found := value(each)) is not None
            ]
            for since, until in self.calm
        )
        return growth(before, after)

    @property
    def memory_growth(self) -> float | None:
        """Of the whole server."""
        return self.growth(lambda each: each.memory)

    @property
    def file_growth(self) -> float | None:
        """Of the open files of `tessera-serve` itself. How many the others have says how often they
        were started anew: a process whose model is loaded again inherits all that tritonserver has
        open by then, five times as many as the first one.
        """
        return self.growth(lambda each: each.parts[OURS].files)

    @property
    def grown(self) -> list[str]:
        """What has grown too much, in words."""
        found = {"memory": self.memory_growth, "open files": self.file_growth}
        return [
            f"{name} by {100 * by:.1f} %"
            for name, by in found.items()
            if by is not None and by >= _GROWTH
        ]

    @property
    def failed(self) -> bool:
        """Whether anything was not as it should be."""
        return bool(self.faulty or self.left or self.grown)

    def parts(self) -> dict[str, dict[str, float | None]]:
        """Of each part of the whole server: its memory and open files at the median, the growth of
        the former, and the most of the latter.
        """
        whole = [each.parts for each in self.seen if each.whole]
        told: dict[str, dict[str, float | None]] = {}
        for name in sorted({name for parts in whole for name in parts}):
            values = [float(parts[name].memory) for parts in whole if name in parts]
            files = [parts[name].files for parts in whole if name in parts]
            grown = self.growth(partial(_memory, part=name))
            told[name] = {
                "median_mb": round(statistics.median(values) / 1e6),
                "growth": _rounded(grown),
                "open_files": statistics.median(files),
                "most_open_files": max(files),
            }
        return told


def summary(soak: Soak) -> dict[str, Any]:
    """What the table and the JSON say."""
    return {
        "date": date.today().isoformat(),
        "minutes": soak.minutes,
        "requests": len(soak.happened),
        "outcomes": {
            kind: dict(Counter(h.outcome for h in soak.happened if h.kind == kind))
            for kind in sorted({h.kind for h in soak.happened})
        },
        "faulty": [asdict(each) for each in soak.faulty],
        "corrupted": [asdict(each) for each in soak.corrupted],
        "faults": [
            {"at": round(f.at - soak.began, 1), "what": f.what, "seconds": round(f.seconds, 1)}
            for f in soak.faults
        ],
        "disk_filled": soak.full,
        "ended_by_itself": soak.ended,
        "calm_minutes": soak.calm
        and [[round(_minute(soak, at), 1) for at in span] for span in soak.calm],
        "memory_growth": _rounded(soak.memory_growth),
        "file_growth": _rounded(soak.file_growth),
        "grown": soak.grown,
        "parts": soak.parts(),
        "whole_looks": sum(each.whole for each in soak.seen),
        "looks": [
            {
                "at": round(s.at - soak.began, 1),
                "whole": s.whole,
                "parts": {
                    name: [round(part.memory / 1e6, 1), part.processes, part.files]
                    for name, part in s.parts.items()
                },
            }
            for s in soak.seen
        ],
        "memory_mb": _range([s.memory / 1e6 for s in soak.seen]),
        "open_files": _range([s.files for s in soak.seen]),
        "processes": _range([s.processes for s in soak.seen]),
        "shared_files": _range([s.shared for s in soak.seen]),
        "left_behind": list(soak.left),
        "unfinished": soak.unfinished,
    }


def write(soak: Soak, folder: Path, console: Console) -> None:
    """Print the table; write `soak.json` and `soak.png`."""
    found = summary(soak)
    (folder / "soak.json").write_text(json.dumps(found, indent=1) + "\n")
    outcomes = ("right", "denser", "unavailable", *FAULTY)
    table = Table(title=f"{soak.minutes:g} minutes, {len(soak.faults)} faults")
    for column in ("request", *outcomes):
        table.add_column(column, justify="left" if column == "request" else "right")
    for kind, counts in found["outcomes"].items():
        table.add_row(kind, *(str(counts.get(outcome, 0)) for outcome in outcomes))
    console.print(table)
    for name in ("memory_mb", "open_files", "processes", "shared_files"):
        console.print(f"{name.replace('_', ' ')}: {found[name]}")
    if (grown := found["memory_growth"]) is not None:
        console.print(f"memory, after the faults against before: {100 * grown:+.1f} %")
    console.print(f"tritonserver ended by itself: {soak.ended} times")
    for each in (*soak.corrupted, *soak.faulty):
        console.print(f"{each.kind}: {each.outcome}, {each.note}")
    for what in soak.left:
        console.print(f"left behind: {what}")
    for what in soak.grown:
        console.print(f"grown: {what}")
    console.print(f"files of templates that nobody has finished: {soak.unfinished}")
    draw(soak, folder / "soak.png")


def draw(soak: Soak, path: Path) -> None:
    """Memory and requests over time, with the faults."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, (above, below) = plt.subplots(2, 1, sharex=True, figsize=(9, 5))
    above.plot([_minute(soak, s.at) for s in soak.seen], [s.memory / 1e9 for s in soak.seen])
    above.set_ylabel("memory, GB")
    for outcome in ("right", "denser", "unavailable", *FAULTY):
        own = [h for h in soak.happened if h.outcome == outcome]
        if own:
            times = [_minute(soak, h.at) for h in own]
            below.scatter(times, [h.seconds for h in own], s=4, label=outcome)
    for fault in soak.faults:
        for axes in (above, below):
            axes.axvline(_minute(soak, fault.at), color="lightgrey", zorder=0)
    below.set(yscale="log", ylabel="request, s", xlabel="minutes; grey: a fault")
    below.legend(markerscale=3)
    figure.tight_layout()
    save(figure, path, dpi=120)
    plt.close(figure)


def _memory(seen: Seen, part: str) -> float | None:
    return seen.parts[part].memory if part in seen.parts else None


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def _minute(soak: Soak, at: float) -> float:
    return (at - soak.began) / 60


def _range(values: Sequence[float]) -> dict[str, float]:
    if not values:
        return {}
    return {
        "lowest": round(min(values)),
        "median": round(statistics.median(values)),
        "highest": round(max(values)),
    }

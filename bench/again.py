"""A benchmark once more, on another day: are the figures of its report within their spread?

    python -m bench again REPORT              run it as the report was, and compare
    python -m bench again REPORT --with FILE  compare with a run that is in a file already

REPORT is the name of a file in `bench/results`. The second run is written to `out/again`, the
comparison to `bench/results/second_day.json`, which keeps the other reports' comparisons. Each has
both runs' dates, commands and machines. What has to hold on a machine of another speed are ratios
between sides that take turns. Absolute times are there to be seen beside the machine's speed.
"""

from __future__ import annotations

import argparse
import importlib
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any

from bench import report
from bench.__main__ import BENCHES
from bench.markdown import NOT_YET, if_measured, markdown, speed
from bench.sampled import FORMS, WITHOUT
from bench.server import ROOT

NAME = "second_day"
FOLDER = ROOT / "out" / "again"
RUN = ("date", "command", "machine")
"""What the comparison has of a run."""
MACHINE = ("cpu", "threads", "product_ms")
"""What its file keeps of a machine."""
Content = Mapping[str, Any]


def main() -> None:
    """Run, compare, print, write."""
    parser = argparse.ArgumentParser(description="a benchmark once more, compared")
    parser.add_argument("report", help=f"one of {', '.join(FORMS)}")
    parser.add_argument("--with", type=Path, dest="file", help="the second run's report")
    options = parser.parse_args()
    if options.report not in FORMS:
        why = WITHOUT.get(options.report, "there is no such report")
        parser.error(f"{options.report} cannot be compared: {why}; accepted: {', '.join(FORMS)}")
    first, command = report.read(options.report), [*sys.argv]
    if not any(FORMS[options.report].figures(first)):
        parser.error(
            f"{options.report} of {first['date']} has medians without samples; run it anew"
        )
    if options.file is None and first["date"] == date.today().isoformat():
        parser.error(f"{options.report} was measured today; a second day begins tomorrow")
    file = options.file or run(options.report, first)
    sys.argv[:] = command
    found = compared(options.report, first, report.parsed(file.read_text()))
    others = report.read(NAME)["results"] if report.path_of(NAME).exists() else {}
    machine = {name: found["second"]["machine"][name] for name in ("cpu", "threads")}
    every = {**others, options.report: kept(found)}
    written = report.write(NAME, {"spread": "quartiles"}, every, machine=machine)
    print(markdown(HEAD, rows_of(found)))
    print(f"written: {written}")


def run(name: str, first: Content) -> Path:
    """Run a report's benchmark as it was run then, in this process; returns the new report."""
    module, program, options = started(first["command"])
    for option in FORMS[name].options:
        if option in first["settings"] and f"--{option}" not in options:
            options += [f"--{option}", str(first["settings"][option])]
    bench: Any = importlib.import_module(f"bench.{module}")
    sys.argv[:] = [program, *options]
    FOLDER.mkdir(parents=True, exist_ok=True)
    if hasattr(bench, "FIGURE"):
        bench.FIGURE = FOLDER / bench.FIGURE.name
    with report.elsewhere(FOLDER):
        bench.main()
        return report.path_of(name)


def started(command: str) -> tuple[str, str, list[str]]:
    """The module of a report's command, what `sys.argv[0]` was, and its options.

    Raises:
        ValueError: it is no command of a benchmark that there is.
    """
    words = shlex.split(command)
    match words[:3], words[3:]:
        case ["python", "-m", "bench"], [bench, *options] if bench in BENCHES:
            return BENCHES[bench].module, f"bench {bench}", options
        case ["python", "-m", of_module], options if of_module.startswith("bench."):
            module = of_module.removeprefix("bench.")
            return module, f"{module}.py", options
    raise ValueError(f"the command is {command!r}; accepted: python -m bench NAME [options]")


def compared(name: str, first: Content, second: Content) -> dict[str, Any]:
    """Both runs, and each figure that both have.

    Raises:
        ValueError: their settings differ.
    """
    form, settings = FORMS[name], [first["settings"], second["settings"]]
    shared = settings[0].keys() & settings[1].keys() - set(form.free)
    other = {key: [of[key] for of in settings] for key in sorted(shared)}
    if other := {key: values for key, values in other.items() if values[0] != values[1]}:
        raise ValueError(f"the settings of {name} differ between both runs: {other}")
    before, again = ({f.name: f for f in form.figures(of)} for of in (first, second))
    return {
        **{
            which: {key: of[key] for key in RUN}
            for which, of in (("first", first), ("second", second))
        },
        "figures": {
            figure: [_short(asdict(of[figure])) for of in (before, again)]
            for figure in before
            if figure in again
        },
    }


def _short(figure: dict[str, Any]) -> dict[str, Any]:
    """A figure as it is written: without its name, in few digits."""
    del figure["name"]
    return {
        key: [round(v, 4) for v in value] if isinstance(value, tuple) else value
        for key, value in figure.items()
        if value is not None
    }


NO = "no"
HEAD = ("figure", "first", "second", "second / first", "within the spread")


def table() -> str:
    """The second day of every report that had one, a row for each."""
    if (content := if_measured(NAME)) is None:
        return NOT_YET.format("again REPORT")
    head = ("report", "first", "second", "within the spread", "second / first, of its figures")
    return markdown(head, [row_of(found) for found in content["results"].values()])


def kept(found: Content) -> dict[str, Any]:
    """A comparison as the file has it: both runs, and of each figure the quartiles of both."""
    runs = {which: dict(found[which]) for which in ("first", "second")}
    for run in runs.values():
        run["machine"] = {key: run["machine"][key] for key in MACHINE if key in run["machine"]}
    figures = {
        name: [of["quartiles"] for of in figure] for name, figure in found["figures"].items()
    }
    return {**runs, "figures": figures}


def row_of(found: Content) -> list[str]:
    """A kept comparison in short: the speed of the machine in both runs, how many figures are
    within the spread at least one way, and between which factors they have changed.
    """
    runs, figures = [found["first"], found["second"]], found["figures"].values()
    inside = sum(within(old, new) != NO for old, new in figures)
    changes = sorted(filter(None, (_change(old, new) for old, new in figures)))
    span = f"{changes[0]:.2f} to {changes[-1]:.2f}" if changes else ""
    command = f"`{runs[0]['command']}`"
    return [command, *map(speed, runs), f"{inside} of {len(figures)}", span]


def rows_of(found: Content) -> list[list[str]]:
    """A comparison's figures."""
    rows = []
    for name, (before, again) in found["figures"].items():
        old, new = before["quartiles"], again["quartiles"]
        change = _change(old, new)
        shown, inside = f"{change:.2f}" if change else "", within(old, new)
        rows.append([name, _cell(before), _cell(again), shown, inside])
    return rows


def _change(old: Sequence[float], new: Sequence[float]) -> float | None:
    """By what a figure's median has changed, if it is a factor."""
    return new[1] / old[1] if old[1] > 0 and new[1] > 0 else None


def within(old: Sequence[float], new: Sequence[float]) -> str:
    """Whether either median is between the other's quartiles."""
    second, first = old[0] <= new[1] <= old[2], new[0] <= old[1] <= new[2]
    if second and first:
        return "both ways"
    return "second in first" if second else "first in second" if first else NO


def _cell(figure: Content) -> str:
    low, middle, high = figure["quartiles"]
    digits = 0 if abs(middle) >= 100 else 1 if abs(middle) >= 10 else 2 if middle >= 0.1 else 3
    turns = f", {figure['turns']} turns" if "turns" in figure else ""
    sides = " / ".join(f"{ms:.0f}" for ms in figure.get("sides", ()))
    shown = f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f}{turns})"
    return f"{shown}: {sides} ms" if sides else shown


if __name__ == "__main__":
    main()

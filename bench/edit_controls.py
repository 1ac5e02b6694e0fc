"""How close sparse edits with a ControlNet are to dense ones with it.

    python -m bench.edit_controls --cases 24

The ControlNet (edges) shows the picture with the new shape in it. Recordings are made without it,
or with it and the same image, as after a registration with CONTROLS. Writes every measurement to
`bench/results/edit_controls.json`, after each case.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from pathlib import Path

import cv2
from rich.console import Console
from rich.progress import track

from bench import report
from bench.edit_cases import FRESH_RATIOS, Case, fresh_cases
from bench.edit_lab import Edit, Lab
from bench.edit_policies import FLOAT16, Side
from bench.edit_tables import by_side
from bench.markdown import markdown
from bench.report import describe_machine
from bench.server import DEMO_BUNDLE
from tessera_build.similarity import ssim

NAME, CONTROL = "edit_controls", "edges"
RATIOS = tuple(ratio for ratio in FRESH_RATIOS if ratio in (0.05, 0.11, 0.2, 0.35))
SIDES = {
    "empty prompt, fast": Side(quality="fast"),
    "empty prompt, balanced": Side(quality="balanced"),
    "own prompt, balanced": Side(recording="own", quality="balanced"),
    "own prompt, best": Side(recording="own", quality="best"),
}
console = Console(highlight=False)


@dataclass(frozen=True)
class Measured:
    """A sparse edit compared to the dense one; fields as in `bench.edit_loras`. `control` is
    whether both have the ControlNet.
    """

    control: bool
    side: str
    ratio: float
    ssim: float
    computed: float


def main() -> None:
    """Make the edits, print the table, write the measurements."""
    parser = argparse.ArgumentParser(description="sparse edits with a ControlNet")
    parser.add_argument("--bundle", type=Path, default=DEMO_BUNDLE)
    parser.add_argument("--cases", type=int, default=24)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    each = len(FRESH_RATIOS) // 2  # half of their cases are drawn and left out: see `RATIOS`
    if options.cases < each or options.cases % each:
        parser.error(f"--cases is {options.cases}; accepted: {each} and its multiples")
    lab, machine = Lab(options.bundle, threads=options.threads), describe_machine(options.threads)
    drawn = fresh_cases(2 * options.cases, seed=1823)
    by_ratio = [[case for case in drawn if case.ratio == ratio] for ratio in RATIOS]
    cases = [case for turn in zip(*by_ratio, strict=True) for case in turn]
    found: list[Measured] = []
    settings = {"bundle": options.bundle.name, "steps": Edit.steps, "control": CONTROL}
    for case in track(cases, description="edits", console=console):
        found += measure(lab, case)
        rows = [asdict(m) for m in found]
        report.write(NAME, settings, rows, machine=machine, out=options.out)
    console.print(markdown(*by_side([asdict(m) for m in found if m.control])))


def measure(lab: Lab, case: Case) -> list[Measured]:
    """Measure a case with each of the `SIDES`, with the ControlNet and without."""
    edges = cv2.Canny(cv2.cvtColor(lab.dense(case.edit).image, cv2.COLOR_RGB2GRAY), 100, 200)
    controlled = replace(
        case.edit, control=CONTROL, control_image=edges[..., None].repeat(3, 2), seed=7
    )
    plain = replace(case.edit, seed=7)
    found = []
    for edit, recorded, prefix in (
        (controlled, plain, ""),
        (controlled, controlled, "recorded with it, "),
        (plain, plain, ""),
    ):
        record = cache(partial(lab.record, recorded, FLOAT16))
        dense = lab.dense(edit)
        for name, side in SIDES.items():
            sparse = lab.sparse(edit, side.way_of(case), record(side.prompts(case)))
            close = ssim(sparse.image, dense.image, edit.mask)
            of_case = (edit is controlled, f"{prefix}{name}", case.ratio)
            found.append(Measured(*of_case, round(close, 4), round(sparse.computed, 4)))
    return found


if __name__ == "__main__":
    main()

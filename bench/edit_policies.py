"""Where the error of sparse edits comes from, and what it costs to lower it.

    python -m bench.edit_policies --fresh 100 --held-out 20

Each case is edited densely and then sparsely: as the server does it for each quality with this
bundle (`tessera-build probe`), or in other ways (`--sides`): margins, dense steps, recordings with
other prompts. Prompts name the new shape only (`bench/edit_cases.py`). Writes every measurement to
`bench/results/edit_policies.json`, and `docs/images/edit-policies.webp`.
"""

from __future__ import annotations

import argparse
import random
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from pathlib import Path

from rich.console import Console
from rich.progress import track
from rich.table import Table

from bench import report
from bench.edit_cases import FRESH, Case, fresh_cases, held_out_cases
from bench.edit_lab import Edit, Lab, Made, Way
from bench.plots import save
from bench.report import describe_machine, parsed
from bench.server import DEMO_BUNDLE, ROOT
from tessera.edits.measured import policies_of
from tessera.edits.quality import BUILT_IN, Policies, Policy
from tessera.manifest import read_manifest
from tessera.templates.nearest import Nearness
from tessera.templates.storage import Storage
from tessera_build.similarity import ssim

FIGURE = ROOT / "docs" / "images" / "edit-policies.webp"
NAME = "edit_policies"
FLOAT16 = Storage("float16")
TODAY = Way(FLOAT16, dense_first=2, dilate=1)
"""What `fast` does."""

MARGINS = (0, 1, 2, 3, 4, 6)
EMPTY, OWN, NEAR, TEMPLATE = "empty", "own", "near", "template"
console = Console(highlight=False)


@dataclass(frozen=True)
class Side:
    """A way to edit, and the prompt of its recordings. A `quality` does what the server does for it
    with MODE `sparse`.
    """

    way: Way = TODAY
    recording: str = EMPTY
    quality: str = ""

    def way_of(self, case: Case, policies: Policies = BUILT_IN) -> Way:
        """For a case."""
        if not self.quality:
            return self.way
        policy = policies.of(self.quality, Nearness(self.recording), case.ratio)[0]
        return by_policy(policy)

    def prompts(self, case: Case) -> tuple[str, ...]:
        """One for each recording."""
        texts = {OWN: case.edit.prompt, NEAR: case.near, TEMPLATE: case.described}
        return ("", texts[self.recording]) if self.recording in texts else ("",)


def by_policy(policy: Policy) -> Way:
    """What the server does by a policy."""
    dense = (step for step in range(Edit.steps) if policy.dense_at(step, Edit.steps))
    return replace(TODAY, dilate=policy.margin, dense_steps=frozenset(dense))


def _steps(first: int, count: int = 4) -> Way:
    return replace(TODAY, dense_first=0, dense_steps=frozenset(range(first, first + count)))


SERVED = {
    "fast": Side(quality="fast"),
    **{
        f"{quality}, {recording} prompt": Side(recording=recording, quality=quality)
        for quality in ("balanced", "best")
        for recording in (EMPTY, NEAR, OWN)
    },
}
"""What the server does."""

GRID = {
    **{f"margin {m}": Side(replace(TODAY, dilate=m)) for m in MARGINS},
    **{f"steps {i}-{i + 3} dense": Side(_steps(i)) for i in (0, 4, 8, 12, 16)},
    **{f"every {n}. dense": Side(replace(TODAY, dense_every=n)) for n in (2, 3, 4, 5, 7)},
    **{
        f"every {n}. dense, margin {m}": Side(replace(TODAY, dense_every=n, dilate=m))
        for n in (2, 3, 5)
        for m in (2, 4, 6)
    },
    **{
        f"{kind} prompt, margin {m}": Side(replace(TODAY, dilate=m), kind)
        for kind in (OWN, NEAR, TEMPLATE)
        for m in (1, 3)
    },
    "own prompt, margin 1, none dense": Side(replace(TODAY, dense_first=0), OWN),
    "own prompt, margin 1, every 5.": Side(replace(TODAY, dense_every=5), OWN),
    "near prompt, margin 1, every 5.": Side(replace(TODAY, dense_every=5), NEAR),
}


SIDES = SERVED | GRID


@dataclass(frozen=True)
class Measured:
    """A sparse edit compared to the dense one.

    Attributes:
        side: its name.
        kind, ratio: of the case.
        ssim: inside the mask.
        dense_ms, sparse_ms: milliseconds of denoising.
        computed: tokens of all steps, as a share of those of the dense edit.
        distance: of the recording's prompt from the edit's, see `tessera.templates.nearest`.
    """

    side: str
    kind: str
    ratio: float
    ssim: float
    dense_ms: float
    sparse_ms: float
    computed: float
    distance: float


def main() -> None:
    """Make the edits, print the table, write the measurements."""
    parser = argparse.ArgumentParser(description="what raises the quality of sparse edits")
    parser.add_argument("--bundle", type=Path, default=DEMO_BUNDLE)
    parser.add_argument("--fresh", type=int, default=100)
    parser.add_argument("--held-out", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--sides", nargs="*", choices=list(SIDES), default=list(SERVED))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--figure", type=Path, default=FIGURE)
    parser.add_argument("--show", type=Path, help="Draw an earlier run's measurements only.")
    options = parser.parse_args()
    if options.show:
        content = parsed(options.show.read_text())
        show([Measured(**m) for m in content["results"]], options.figure)
        return
    lab, machine = Lab(options.bundle, threads=options.threads), describe_machine(options.threads)
    settings = {"bundle": options.bundle.name, "steps": Edit.steps}
    cases = [*held_out_cases(options.held_out, lab.draw), *fresh_cases(options.fresh)]
    random.Random(0).shuffle(cases)  # what a shorter run measures is of all ratios
    policies, news = policies_of(options.bundle, read_manifest(options.bundle).digest)
    console.print(news or "the bundle's own policies")
    found: list[Measured] = []
    for case in track(cases, description="edits", console=console):
        found += measure(lab, case, options.sides, policies)
        rows = [asdict(m) for m in found]
        report.write(NAME, settings, rows, machine=machine, out=options.out)
    show(found, options.figure)


def show(found: Sequence[Measured], figure: Path) -> None:
    """Print the tables and draw the figure."""
    for kind in sorted({m.kind for m in found}):
        console.print(table([m for m in found if m.kind == kind], kind))
    draw_curves(found, figure)


def measure(
    lab: Lab, case: Case, names: Iterable[str], policies: Policies = BUILT_IN
) -> list[Measured]:
    """Measure a case with each of these `SIDES`."""
    found = []
    dense = lab.dense(case.edit)
    record = cache(partial(lab.record, case.edit))

    @cache
    def edited(way: Way, prompts: tuple[str, ...]) -> Made:
        """Once, if several qualities do the same."""
        return lab.sparse(case.edit, way, record(way.storage, prompts))

    for name in names:
        side = SIDES[name]
        way, prompts = side.way_of(case, policies), side.prompts(case)
        sparse = edited(way, prompts)
        found.append(
            Measured(
                side=name,
                kind=case.kind,
                ratio=case.ratio,
                ssim=round(ssim(sparse.image, dense.image, case.edit.mask), 4),
                dense_ms=round(dense.milliseconds, 1),
                sparse_ms=round(sparse.milliseconds, 1),
                computed=round(sparse.computed, 4),
                distance=round(lab.distance(case.edit, prompts[-1]), 4),
            )
        )
    return found


def table(found: Sequence[Measured], kind: str) -> Table:
    """Median SSIM (lower quartile) by side and ratio, and the tokens computed against dense."""
    ratios = sorted({m.ratio for m in found})
    shown = Table(title=f"{kind}: SSIM inside the mask, median (lower quartile), tokens")
    shown.add_column("policy", no_wrap=True)
    for ratio in ratios:
        shown.add_column(f"{ratio:g}", justify="right")
    for name in dict.fromkeys(m.side for m in found):
        cells = []
        for ratio in ratios:
            of_ratio = [m for m in found if m.side == name and m.ratio == ratio]
            cells.append(_cell(of_ratio))
        shown.add_row(name, *cells)
    return shown


def _cell(found: Sequence[Measured]) -> str:
    values = sorted(m.ssim for m in found)
    computed = statistics.median(m.computed for m in found)
    return f"{statistics.median(values):.3f} ({values[len(values) // 4]:.3f}) {computed:.2f}"


def draw_curves(found: Sequence[Measured], path: Path) -> None:
    """Draw quality against cost: a line for each side, a point for each ratio of fresh cases."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    fresh = [m for m in found if m.kind == FRESH]
    for name in dict.fromkeys(m.side for m in fresh):
        points = []
        for ratio in sorted({m.ratio for m in fresh}):
            of_ratio = [m for m in fresh if (m.side, m.ratio) == (name, ratio)]
            computed = statistics.median(m.computed for m in of_ratio)
            points.append((computed, statistics.median(m.ssim for m in of_ratio)))
        axes.plot(*zip(*points, strict=True), marker="o", markersize=3, linewidth=1.2, label=name)
    axes.axhline(0.95, color="grey", linewidth=0.8, linestyle=":")
    axes.set(xlabel="tokens computed, dense edit = 1", ylabel="median SSIM inside the mask")
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    path.parent.mkdir(parents=True, exist_ok=True)
    save(figure, path)
    plt.close(figure)


if __name__ == "__main__":
    main()

"""How close sparse edits with a LoRA are to dense ones with it, by what has been recorded.

    python -m bench.edit_loras --cases 72

The recording is the base's or made with the LoRA, with the empty prompt or the edit's own. Half of
the cases are drawn scenes, half are pictures that the model has drawn with the LoRA
(`bench/edit_cases.py`). Writes every measurement to `bench/results/edit_loras.json`, after each
case.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import track
from rich.table import Table

from bench import report
from bench.edit_cases import HELD_OUT_RATIOS, Case, fresh_cases, held_out_cases
from bench.edit_lab import Edit, Lab, Steps, Way
from bench.edit_policies import FLOAT16, by_policy
from bench.edit_tables import by_side
from bench.report import describe_machine
from bench.server import DEMO_BUNDLE
from tessera.edits.quality import BUILT_IN, Policy
from tessera.requests.request import Lora
from tessera.templates.nearest import Nearness
from tessera.types import Array
from tessera_build.similarity import ssim

NAME = "edit_loras"
LORAS = ("halved", "outline", "night")
BASE, SET = "base", "LoRA"
EMPTY, OWN = Nearness.EMPTY, Nearness.OWN
console = Console(highlight=False)


@dataclass(frozen=True)
class Side:
    """A way to edit.

    Attributes:
        recorded: with the LoRA, or without.
        prompt: whose is recorded.
        quality: that it shall have.
        policy: taken instead of the one that the server takes without LoRAs.
    """

    recorded: str
    prompt: Nearness
    quality: str
    policy: Policy | None = None

    @property
    def name(self) -> str:
        """As results have it."""
        named = f"{self.recorded}, {self.prompt} prompt, {self.quality}"
        if self.policy is None:
            return named
        return f"{named}, margin {self.policy.margin}, every {self.policy.every}. dense"

    def way(self, case: Case) -> Way:
        """For a case."""
        policy = self.policy or BUILT_IN.of(self.quality, self.prompt, case.ratio)[0]
        return by_policy(policy)


SIDES = (
    *(Side(BASE, EMPTY, quality) for quality in ("fast", "balanced", "best")),
    *(Side(BASE, OWN, quality) for quality in ("balanced", "best")),
    *(Side(BASE, OWN, "balanced", policy) for policy in (Policy(4, 3), Policy(4, 2))),
    *(Side(SET, EMPTY, quality) for quality in ("fast", "balanced")),
    *(Side(SET, OWN, quality) for quality in ("balanced", "best")),
)


@dataclass(frozen=True)
class Measured:
    """A sparse edit compared to the dense one.

    Attributes:
        lora: its LoRA.
        side: see `Side.name`.
        kind, ratio: of the case.
        ssim: inside the mask.
        computed: tokens of all steps, as a share of those of the dense edit.
    """

    lora: str
    side: str
    kind: str
    ratio: float
    ssim: float
    computed: float


def main() -> None:
    """Make the edits, print the tables, write the measurements."""
    parser = argparse.ArgumentParser(description="sparse edits with LoRAs")
    parser.add_argument("--bundle", type=Path, default=DEMO_BUNDLE)
    parser.add_argument("--cases", type=int, default=72)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    lab, machine = Lab(options.bundle, threads=options.threads), describe_machine(options.threads)
    found: list[Measured] = []
    settings = {"bundle": options.bundle.name, "steps": Edit.steps, "loras": LORAS}
    cases = list(_cases(lab, options.cases))
    for lora, case in track(cases, description="edits", console=console):
        found += measure(lab, lora, case)
        rows = [asdict(m) for m in found]
        report.write(NAME, settings, rows, machine=machine, out=options.out)
    show(found)


def _cases(lab: Lab, count: int) -> Iterator[tuple[str, Case]]:
    """Cases of both kinds with the LoRAs in turns. What a shorter run measures is of all ratios."""
    ratios = len(HELD_OUT_RATIOS)
    each = ratios * max(1, count // (2 * ratios))
    turns = [LORAS[i // ratios % len(LORAS)] for i in range(each)]
    upcoming = iter(turns)

    def draw(prompt: str, seed: int) -> Array:
        lab.adapt([Lora(name=next(upcoming))])
        return lab.draw(prompt, seed)

    held_out = held_out_cases(each, draw, seed=1822)
    fresh = [c for c in fresh_cases(2 * each, seed=1821) if c.ratio in HELD_OUT_RATIOS]
    by_ratio = sorted(range(each), key=lambda i: i % (each // ratios))  # they come by ratio
    for turn, lora in enumerate(turns):
        yield lora, fresh[by_ratio[turn]]
        yield lora, held_out[turn]


def measure(lab: Lab, lora: str, case: Case) -> list[Measured]:
    """Measure a case with each of the `SIDES`."""
    recordings = {recorded: _recordings(lab, lora, case, recorded) for recorded in (BASE, SET)}
    dense, found = lab.dense(case.edit), []
    for side in SIDES:
        recorded = recordings[side.recorded][: 1 if side.prompt == EMPTY else 2]
        sparse = lab.sparse(case.edit, side.way(case), recorded)
        close = ssim(sparse.image, dense.image, case.edit.mask)
        of_case = (lora, side.name, case.kind, case.ratio)
        found.append(Measured(*of_case, round(close, 4), round(sparse.computed, 4)))
    return found


def _recordings(lab: Lab, lora: str, case: Case, recorded: str) -> list[Steps]:
    """With the empty prompt and with the edit's own; leaves the LoRA in the engines.

    As in the server, only the edit's own prompt is read by text encoders with the LoRA.
    """
    chosen = [Lora(name=lora)]
    lab.adapt_recordings(chosen if recorded == SET else [])
    lab.adapt([])
    empty = lab.record(case.edit, FLOAT16, [""])
    lab.adapt(chosen)
    return [*empty, *lab.record(case.edit, FLOAT16, [case.edit.prompt])]


def show(found: Sequence[Measured]) -> None:
    """Print a table over all, of each kind and of each LoRA."""
    rows = [asdict(m) for m in found]
    parts = {"all": rows}
    for field in ("kind", "lora"):
        for value in sorted({row[field] for row in rows}):
            parts[value] = [row for row in rows if row[field] == value]
    for title, part in parts.items():
        head, lines = by_side(part)
        shown = Table(title=f"{title}: SSIM inside the mask, median (lower quartile), tokens")
        for name in head:
            shown.add_column(name, no_wrap=True)
        for line in lines:
            shown.add_row(*line)
        console.print(shown)


if __name__ == "__main__":
    main()

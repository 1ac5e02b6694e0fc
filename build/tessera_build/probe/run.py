"""Runs a probe within a time, and writes what follows from it into the bundle."""

from __future__ import annotations

import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Protocol

from tessera.contract import FIFTHS, EditQuality
from tessera.edits.measured import ErrorRow, Measured
from tessera.edits.quality import BUILT_IN, Policy, Rows
from tessera.engines.bundle import Bundle
from tessera.errors import BundleError
from tessera.templates.nearest import Nearness
from tessera.types import Array
from tessera_build.probe.cases import LIMITS, SHARES, Case, Prompts, cases
from tessera_build.probe.derive import BASE, EVERY, GOALS, MARGINS, Errors, cheapest
from tessera_build.probe.editor import Edit, Editor
from tessera_build.similarity import ssim

LEAST, MOST = 4, 8
"""Cases of each share of the picture."""
TRIAL = 2
"""After so many cases it is known how long the others will take."""

OTHERS = ("near", "template")
"""What a case's prompt is compared with: the prompt of another edit, and that of the picture."""

POLICIES = (
    *(Policy(margin) for margin in MARGINS),
    *(Policy(BASE, fifths=(fifth,)) for fifth in range(FIFTHS)),
    *(Policy(BASE, every) for every in EVERY),
)
"""What is compared with the dense edit in each case."""


@dataclass(frozen=True)
class Found:
    """Of one case: errors by nearness and policy, tokens by margin, distances of the prompt from
    others by `OTHERS`.
    """

    share: float
    errors: dict[tuple[Nearness, Policy], float]
    tokens: dict[int, float]
    distances: dict[str, float]


class Edits(Protocol):
    """Makes edits. See `tessera_build.probe.editor.Editor`."""

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of pictures."""
        ...

    def draw(self, prompt: str, seed: int) -> Array:
        """A picture."""
        ...

    def dense(self, edit: Edit) -> Array:
        """An edit without recordings."""
        ...

    def record(self, image: Array, prompt: str) -> tuple[str, ...]:
        """Record a picture; returns what edits have as `Plan.texts`."""
        ...

    def distance(self, prompt: str, other: str) -> float:
        """How far another prompt is, see `tessera.templates.nearest.distance`."""
        ...

    def sparse(self, edit: Edit, texts: tuple[str, ...], policy: Policy) -> Array:
        """An edit by a policy from a recording."""
        ...

    def tokens(self, edit: Edit, margin: int) -> float:
        """The share of the tokens that a sparse step computes."""
        ...

    def forget(self) -> None:
        """Remove all recordings."""
        ...


def probe(
    folder: Path,
    prompts: tuple[Prompts, ...],
    *,
    minutes: float,
    progress: Callable[[int], None] = lambda case: None,
) -> tuple[Measured, Path]:
    """Measure a bundle, and write the file.

    Args:
        folder: of the bundle.
        prompts: what is drawn.
        minutes: how long it may take. More than `LEAST` cases of each share are compared only if
            there is time.
        progress: told the number of each case that begins.

    Returns:
        What was found, and the file.

    Raises:
        BundleError: the bundle cannot be measured, or not in that time.
    """
    bundle, began = Bundle(folder), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="tessera-probe-") as work:
        editor = Editor(bundle, Path(work))
        found = compared(editor, cases(prompts), seconds=60 * minutes, progress=progress)
    how = _how(bundle, found, time.monotonic() - began)
    measured = derived(bundle.manifest.digest, found, how)
    return measured, measured.write(folder)


def compared(
    editor: Edits,
    wanted: Iterator[Case],
    *,
    seconds: float,
    clock: Callable[[], float] = time.monotonic,
    progress: Callable[[int], None] = lambda case: None,
) -> list[Found]:
    """Compare cases for some time: at least `LEAST` of each share, at most `MOST`.

    Raises:
        BundleError: not even the least number fits into that time, by what two cases took.
    """
    began, found = clock(), list[Found]()
    least, most = LEAST * len(SHARES), MOST * len(SHARES)
    for case in islice(wanted, most):
        progress(case.number)
        found.append(_compare(editor, case))
        done, taken = len(found), clock() - began
        if done == TRIAL and taken / TRIAL * least > seconds:
            raise BundleError(
                f"{least} edits take about {math.ceil(taken / TRIAL * least / 60)} minutes here, "
                f"--minutes allows {seconds / 60:g}; allow more or use a faster machine. Without "
                "the measurement, the policies of the demo model are taken"
            )
        if done >= least and not done % len(SHARES) and taken * (1 + len(SHARES) / done) > seconds:
            break
    return found


def _compare(editor: Edits, case: Case) -> Found:
    prompts = case.prompts
    image = editor.draw(prompts.template, case.number)
    edit = Edit(image, case.mask(*editor.size), prompts.edit, case.number + 1000)
    dense = editor.dense(edit)
    recorded = {Nearness.OWN: prompts.edit, Nearness.NEAR: prompts.near, Nearness.EMPTY: ""}
    errors = {}
    for nearness, prompt in recorded.items():
        texts = editor.record(image, prompt)
        for policy in POLICIES:
            sparse = editor.sparse(edit, texts, policy)
            errors[nearness, policy] = 1 - ssim(sparse, dense, edit.mask)
    editor.forget()
    tokens = {margin: editor.tokens(edit, margin) for margin in MARGINS}
    apart = {kind: editor.distance(prompts.edit, getattr(prompts, kind)) for kind in OTHERS}
    return Found(case.share, errors, tokens, apart)


def derived(digest: str, found: Sequence[Found], how: dict[str, object]) -> Measured:
    """What follows from the cases."""
    errors = {
        (nearness, share): _errors([f for f in found if f.share == share], nearness)
        for nearness in Nearness
        for share in SHARES
    }
    pairs = [(quality, nearness) for quality in GOALS for nearness in Nearness]
    reached: dict[tuple[EditQuality, Nearness], Rows] = {}
    expected: dict[tuple[EditQuality, Nearness], list[float | None]] = {}
    worst = dict.fromkeys(errors, math.inf)
    for quality, nearness in pairs:
        taken, medians = list[tuple[float, tuple[Policy, ...]]](), list[float | None]()
        for limit, share in zip(LIMITS, SHARES, strict=True):
            key = nearness, share
            floor = BUILT_IN.of(quality, nearness, limit)[0]
            policies = cheapest(errors[key], GOALS[quality], floor=floor, at_most=worst[key])
            if policies:  # of `best`, none is predicted worse than of `balanced`
                worst[key] = errors[key].median(policies[0])
            taken.append((limit, policies))
            medians.append(round(1 - worst[key], 4) if policies else None)
        reached[quality, nearness] = tuple(taken)
        expected[quality, nearness] = medians
    rows = [_row(nearness, share, each) for (nearness, share), each in errors.items()]
    return Measured(digest, how, rows, reached, expected)


def _errors(found: Sequence[Found], nearness: Nearness) -> Errors:
    def of(policy: Policy) -> list[float]:
        return [each.errors[nearness, policy] for each in found]

    return Errors(
        tokens={m: statistics.mean(each.tokens[m] for each in found) for m in MARGINS},
        margins={margin: of(Policy(margin)) for margin in MARGINS},
        fifths=[of(Policy(BASE, fifths=(fifth,))) for fifth in range(FIFTHS)],
        every={every: of(Policy(BASE, every)) for every in EVERY},
    )


def _row(nearness: Nearness, share: float, errors: Errors) -> ErrorRow:
    return ErrorRow(
        nearness=nearness,
        share=share,
        cases=len(errors.margins[BASE]),
        by_margin={str(margin): _median(each) for margin, each in errors.margins.items()},
        left_by_fifth=[_median(errors.left(each)) for each in errors.fifths],
        left_by_every={str(n): _median(errors.left(each)) for n, each in errors.every.items()},
    )


def _median(values: Iterable[float]) -> float:
    return round(statistics.median(values), 4)


def _spread(values: Sequence[float]) -> list[float]:
    """The least, the median and the greatest."""
    return [round(of(values), 3) for of in (min, statistics.median, max)]


def _how(bundle: Bundle, found: Sequence[Found], seconds: float) -> dict[str, object]:
    defaults = bundle.manifest.defaults
    return {
        "cases": len(found),
        "steps": defaults.steps,
        "scheduler": defaults.scheduler,
        "guidance": defaults.guidance,
        "width": defaults.width,
        "height": defaults.height,
        "minutes": round(seconds / 60, 1),
        "distances": {k: _spread([each.distances[k] for each in found]) for k in OTHERS},
    }

"""Edit policies that were measured with a bundle: `edits.json` in its folder.

`tessera-build probe` writes the file. It is no part of the bundle's digest, since it follows from
the bundle. Standard library only.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tessera.contract import FIFTHS, EditQuality
from tessera.edits.quality import BUILT_IN, Policies, Policy, Reached, Rows
from tessera.errors import BundleError
from tessera.templates.files import write
from tessera.templates.keys import Nearness

FILE = "edits.json"
SCHEMA = 1
LARGEST = 64
"""Of margins and of `Policy.every`. More is a mistake."""

QUALITIES = (EditQuality.BALANCED, EditQuality.BEST)


@dataclass(frozen=True)
class ErrorRow:
    """Where sparse edits of one kind differ from dense ones. An error is 1 - SSIM inside the mask.

    Attributes:
        nearness: of the recordings' prompts.
        share: of the picture that is masked.
        cases: how many edits were compared.
        by_margin: median error by the margin, with no dense evaluations but the first ones.
        left_by_fifth: what share of the error is left where one fifth of the schedule is dense,
            noisiest first; medians.
        left_by_every: the same where every 2nd, 3rd ... evaluation is dense.
    """

    nearness: str
    share: float
    cases: int
    by_margin: dict[str, float]
    left_by_fifth: list[float]
    left_by_every: dict[str, float]


@dataclass(frozen=True)
class Measured:
    """The content of the file.

    Attributes:
        bundle: digest of the bundle.
        how: what was run, for readers: steps, size, scheduler, minutes and the like.
        errors: what was found.
        reached: what follows from it.
        expected: the median SSIM that the errors predict for each row's first policy, by quality
            and nearness; `None` where there is none.
    """

    bundle: str
    how: Mapping[str, Any]
    errors: Sequence[ErrorRow]
    reached: Reached
    expected: Mapping[tuple[EditQuality, Nearness], Sequence[float | None]]

    def write(self, folder: Path) -> Path:
        """Write the file into a bundle's folder."""
        content = {
            "schema": SCHEMA,
            "bundle": self.bundle,
            "how": dict(self.how),
            "policies": {q: {n: self._rows(q, n) for n in Nearness} for q in QUALITIES},
            "errors": [dataclasses.asdict(row) for row in self.errors],
        }
        path = folder / FILE
        write(path, f"{json.dumps(content, indent=1)}\n".encode(), lasting=True)
        return path

    def _rows(self, quality: EditQuality, nearness: Nearness) -> list[dict[str, Any]]:
        pairs = zip(self.reached[quality, nearness], self.expected[quality, nearness], strict=True)
        return [
            {
                "up_to": limit,
                "expected": expected,
                "policies": [dataclasses.asdict(policy) for policy in found],
            }
            for (limit, found), expected in pairs
        ]


def policies_of(folder: Path, digest: str) -> tuple[Policies, str]:
    """The policies of a bundle, and what an operator should know of them; empty if nothing.

    Args:
        folder: of the bundle.
        digest: of the bundle.

    Raises:
        BundleError: the file is damaged or of another version.
    """
    path = folder / FILE
    remedy = f"tessera-build probe {folder}"
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        return BUILT_IN, (
            "the quality of sparse edits was not measured with this bundle; policies are those of "
            f"the demo model; to measure: {remedy}"
        )
    except (OSError, ValueError) as error:
        raise BundleError(f"{path} cannot be read: {error}; remove it or run {remedy}") from None
    try:
        reached = _read(content)
    except _Wrong as wrong:
        raise BundleError(f"{path}: {wrong}; remove it or run {remedy}") from None
    if content.get("bundle") != digest:
        return BUILT_IN, (
            f"{path} was measured with another state of the bundle; policies are those of the demo "
            f"model; to measure again: {remedy}"
        )
    return Policies(reached, measured=True), ""


class _Wrong(ValueError):
    """What is wrong with a file."""


def _read(content: Any) -> Reached:
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        schema = content.get("schema") if isinstance(content, dict) else None
        raise _Wrong(f"schema is {schema!r}, this Tessera reads {SCHEMA}")
    tables = content.get("policies")
    return {(q, n): _rows(tables, q, n) for q in QUALITIES for n in Nearness}


def _rows(tables: Any, quality: EditQuality, nearness: Nearness) -> Rows:
    name = f"policies.{quality}.{nearness}"
    try:
        listed = tables[quality][nearness]
        rows = tuple((row["up_to"], tuple(map(_policy, row["policies"]))) for row in listed)
    except (KeyError, TypeError) as error:
        raise _Wrong(f"{name} is incomplete ({error!r})") from None
    except _Wrong as wrong:
        raise _Wrong(f"{name}: {wrong}") from None
    limits = [limit for limit, _ in rows]
    if not all(_is_share(limit) for limit in limits):
        raise _Wrong(f"{name}: up_to is {limits}, not numbers above 0 up to 1")
    if not rows or limits != sorted(set(limits)) or limits[-1] != 1:
        raise _Wrong(f"{name}: up_to is {limits}, not ascending up to 1")
    return rows


def _is_share(value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and math.isfinite(value) and 0 < value <= 1


def _policy(entry: Any) -> Policy:
    margin, every, fifths = entry["margin"], entry["every"], entry["fifths"]
    for name, value in (("margin", margin), ("every", every)):
        if not _is_count(value, LARGEST):
            raise _Wrong(f"{name} is {value!r}, not a whole number from 0 to {LARGEST}")
    if not isinstance(fifths, list) or not all(_is_count(f, FIFTHS - 1) for f in fifths):
        raise _Wrong(f"fifths is {fifths!r}, not a list of whole numbers from 0 to {FIFTHS - 1}")
    return Policy(margin, every, tuple(fifths))


def _is_count(value: Any, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= most

"""Traces: requests with their times, made of published workloads or read from published traces.

A trace names prompts, LoRAs, ControlNets and templates by popularity (0 is the most popular), so
that it can be sent to any bundle. Its file has one JSON object a line. `bench.replay` sends it.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from bench.workloads import (
    COUNTS,
    FRESH_PROMPTS,
    arrivals,
    control_rank,
    first_of,
    lora_rank,
    mask_ratio,
    zipf_rank,
)

SCENARIOS = ("text", "add-ons", "edits", "mixed")
"""Pictures with mixed steps and nothing else; all with LoRAs and ControlNets as published; masked
edits; and half edits, half pictures with add-ons."""
STEPS = (8, 12, 20, 30)
"""Of a picture: each as often."""
PROMPTS = 20
"""So many are sent again and again. The fresh ones (`workloads.FRESH_PROMPTS`) have ranks from here
on."""
_RANKS = 2**31
"""Of prompts: so many that two fresh ones are not the same."""
_MILLISECONDS = 1e11
"""Timestamps above this count milliseconds since 1970."""


@dataclass(frozen=True)
class Asked:
    """One request of a trace.

    Attributes:
        at: seconds after the trace's beginning at which it is sent.
        steps: denoising steps.
        seed: of the picture.
        loras, controls: ranks.
        template: rank of the edited picture; `None` for a generation.
        mask: share of the picture that an edit's mask covers.
        prompt: rank; 0 in files of before there were any.
    """

    at: float
    steps: int
    seed: int
    loras: tuple[int, ...] = ()
    controls: tuple[int, ...] = ()
    template: int | None = None
    mask: float = 0.0
    prompt: int = 0


@dataclass(frozen=True)
class Workload:
    """What a made trace is like.

    Attributes:
        scenario: one of `SCENARIOS`.
        service: `A` or `B` of Katz: how many LoRAs and ControlNets a request has.
        masks: `internal`, `public` or `try-on`.
        loras, controls, templates: how many there are.
        zipf: how uneven the popularity of templates and of `PROMPTS` is.
        rate: requests a second.
        spread: of arrivals, see `workloads.arrivals`.
        steps: from which each request takes one.
    """

    scenario: str = "mixed"
    service: str = "B"
    masks: str = "internal"
    loras: int = 20
    controls: int = 2
    templates: int = 12
    zipf: float = 1.0
    rate: float = 1.0
    spread: float = 1.0
    steps: tuple[int, ...] = STEPS
    seed: int = 1


def make(count: int, workload: Workload) -> list[Asked]:
    """A trace of so many requests; the same one for the same workload."""
    rng = random.Random(workload.seed)
    prompts = random.Random(f"prompts {workload.seed}")
    times = arrivals(count, workload.rate, rng, spread=workload.spread)
    return [replace(_one(at, workload, rng), prompt=_prompt(workload, prompts)) for at in times]


def _prompt(workload: Workload, rng: random.Random) -> int:
    if rng.random() < FRESH_PROMPTS:
        return rng.randrange(PROMPTS, _RANKS)
    return zipf_rank(PROMPTS, workload.zipf, rng)


def _one(at: float, workload: Workload, rng: random.Random) -> Asked:
    asked = Asked(round(at, 4), rng.choice(workload.steps), rng.randrange(2**31))
    scenario = workload.scenario
    if scenario == "edits" or (scenario == "mixed" and rng.random() < 0.5):
        template = zipf_rank(workload.templates, workload.zipf, rng)
        return replace(asked, template=template, mask=round(mask_ratio(workload.masks, rng), 4))
    if scenario == "text":
        return asked
    counts = COUNTS[workload.service]
    loras = _some(counts["loras"], workload.loras, lora_rank, rng)
    controls = _some(counts["controls"], workload.controls, control_rank, rng)
    return replace(asked, loras=loras, controls=controls)


def _some(shares: Sequence[float], there: int, draw: Any, rng: random.Random) -> tuple[int, ...]:
    """Different ranks, as many as a request has, or as there are."""
    (wanted,) = rng.choices(range(len(shares)), shares)
    found: set[int] = set()
    while len(found) < min(wanted, there):
        found.add(first_of(there, draw, rng))
    return tuple(sorted(found))


def at_rate(trace: Sequence[Asked], rate: float) -> list[Asked]:
    """The same requests, so many a second on average."""
    now = len(trace) / trace[-1].at
    return [replace(asked, at=round(asked.at * now / rate, 4)) for asked in trace]


def again(trace: Sequence[Asked], number: int) -> list[Asked]:
    """The same requests for a further pass, from 1: fresh prompts are others, and so are seeds.
    Otherwise all of their recordings would be there.
    """
    return [
        replace(
            asked,
            seed=(asked.seed + number) % 2**31,
            prompt=asked.prompt if asked.prompt < PROMPTS else asked.prompt + number * _RANKS,
        )
        for asked in trace
    ]


def save(trace: Sequence[Asked], file: Path) -> None:
    """Write a trace."""
    file.write_text("".join(json.dumps(asdict(asked)) + "\n" for asked in trace))


def load(file: Path) -> list[Asked]:
    """Read a trace that `save` has written.

    Raises:
        ValueError: a line is none of its lines.
    """
    found = []
    for number, line in enumerate(file.read_text().splitlines(), 1):
        try:
            content = json.loads(line)
            content |= {name: tuple(content[name]) for name in ("loras", "controls")}
            found.append(Asked(**content))
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{file.name}, line {number}: {error}") from None
    return found


def read_katz(file: Path, service: str, *, steps: int, loras: int, controls: int) -> list[Asked]:
    """Katz's published trace, `diffusion_model_request_trace.json`: one service's requests.

    Each entry has `timestamp`, `scene_id` (`A` or `B`), `controlnets` and `loras` (lists of ids, or
    null). It says nothing of steps, prompts or edits: each request has a prompt of its own. What is
    popular in the file is rank 0 here; a rank that is not there is mapped to one that is, rank
    modulo number.

    Args:
        file: the file.
        service: `A` or `B`.
        steps: of every request.
        loras: how many there are.
        controls: how many there are.

    Raises:
        ValueError: an entry lacks a field, or the service has no entries.
    """
    try:
        entries = [e for e in json.loads(file.read_text()) if e["scene_id"] == service]
        entries.sort(key=lambda entry: _seconds(entry["timestamp"]))
        ranks = {name: _ranks(entries, name) for name in ("loras", "controlnets")}
    except (KeyError, TypeError) as error:
        raise ValueError(f"{file.name} is not Katz's trace: {error!r}") from None
    if not entries:
        raise ValueError(f"service is {service!r}; accepted: A, B, with entries in {file.name}")
    began = _seconds(entries[0]["timestamp"])

    def mapped(entry: dict[str, Any], name: str, there: int) -> tuple[int, ...]:
        return tuple(sorted({ranks[name][one] % there for one in entry[name] or ()}))

    return [
        Asked(
            at=_seconds(entry["timestamp"]) - began,
            steps=steps,
            seed=number,
            loras=mapped(entry, "loras", loras),
            controls=mapped(entry, "controlnets", controls),
            prompt=PROMPTS + number,
        )
        for number, entry in enumerate(entries)
    ]


def with_masks(trace: Sequence[Asked], file: Path, seed: int = 1) -> list[Asked]:
    """The same edits, their masks drawn from ratios in the form of InstGenIE's (FlashPS's) code: a
    `.npy` file with one array of numbers from 0 to 1.

    Raises:
        ValueError: the file holds something else.
    """
    ratios = np.load(file)
    if ratios.ndim != 1 or not len(ratios) or not ((ratios >= 0) & (ratios <= 1)).all():
        raise ValueError(
            f"{file.name} has an array of {ratios.shape}; accepted: ratios from 0 to 1"
        )
    rng = random.Random(seed)
    return [
        asked if asked.template is None else replace(asked, mask=float(rng.choice(ratios)))
        for asked in trace
    ]


def _ranks(entries: Sequence[dict[str, Any]], name: str) -> dict[str, int]:
    counts: dict[str, int] = {}
    for entry in entries:
        for one in entry[name] or ():
            counts[one] = counts.get(one, 0) + 1
    return {one: rank for rank, one in enumerate(sorted(counts, key=lambda o: (-counts[o], o)))}


def _seconds(timestamp: Any) -> float:
    """Of a number of seconds or milliseconds, or of a date and time."""
    if isinstance(timestamp, str) and not timestamp.replace(".", "", 1).isdigit():
        return datetime.fromisoformat(timestamp).timestamp()
    value = float(timestamp)
    return value / 1e3 if value > _MILLISECONDS else value

"""Published workloads of image generation: what requests ask for, and how often.

Katz (USENIX ATC'25): ControlNets and LoRAs of two services, A and B. InstGenIE / FlashPS
(EuroSys'26): templates and masks. Only distributions; `bench.trace` makes requests of them.
"""

from __future__ import annotations

import bisect
import itertools
import random
from collections.abc import Callable, Iterable, Sequence
from functools import cache

_INTERNAL = "0.02 .009 0.05 .097 0.1 .421 0.15 .264 0.2 .097 0.3 .093 0.42 .019"
_PUBLIC = "0.02 .234 0.05 .249 0.1 .067 0.15 .043 0.2 .112 0.3 .127 0.4 .028"
_PUBLIC += " 0.5 .005 0.7 .022 0.9 .079 1 .034"
MASKS = {
    name: list(zip(*[iter(map(float, text.split()))] * 2, strict=True))
    for name, text in {"internal": _INTERNAL, "public": _PUBLIC}.items()
}
"""Shares of the pixels in masks: (upper edge, share of the requests), InstGenIE's histograms."""

TRY_ON = 0.35
"""Mean of the masks of VITON-HD (InstGenIE). Its histogram is not published."""

CONTROLS = [0.311, 0.564, 0.735, 0.893, 0.976, 0.987, 0.989, 0.99]
"""Share of the requests that need one of the first ControlNets of 47 (Katz, service A)."""

LORAS = [(10, 0.2), (50, 0.375), (100, 0.45), (500, 0.65), (1000, 0.74), (2000, 0.84)]
LORAS += [(4000, 0.94), (6980, 1.0)]
"""Share of the requests that need one of the most popular LoRAs (Katz, service A)."""

CONTROL_COUNT = 47

FRESH_PROMPTS = 0.75
"""Share of the requests with a prompt that nobody has sent before. Neither paper tells of prompts.
DiffusionDB (arXiv 2210.14896) has 1.5 million prompts in its 2 million pictures. In its larger set
fewer are fresh, 1.8 of 14 million. How often each of the others is sent is not taken from it."""

COUNTS: dict[str, dict[str, tuple[float, ...]]] = {
    "A": {"controls": (0.0, 0.305, 0.695), "loras": (0.002, 0.088, 0.91)},
    "B": {"controls": (0.019, 0.251, 0.699, 0.031), "loras": (0.072, 0.736, 0.192)},
}
"""Share of the requests with 0, 1, 2 ... of them (Katz)."""


def mask_ratio(name: str, rng: random.Random) -> float:
    """The share of a picture that an edit's mask covers.

    Args:
        name: a key of `MASKS`, or `try-on`, whose mean alone is published: a beta distribution with
            that mean, two thirds of it between 0.25 and 0.45.
        rng: draws it.
    """
    if name == "try-on":
        return rng.betavariate(20 * TRY_ON, 20 * (1 - TRY_ON))
    return between([(0.003, 0.0), *cumulated(MASKS[name])], rng)


def lora_rank(rng: random.Random) -> int:
    """Which LoRA, by popularity: 0 is the most popular one."""
    return int(between([(0, 0.0), *LORAS], rng))


def control_rank(rng: random.Random) -> int:
    """Which ControlNet, by popularity; beyond the first eight all are alike."""
    rank = bisect.bisect(CONTROLS, rng.random())
    return rank if rank < len(CONTROLS) else rng.randrange(len(CONTROLS), CONTROL_COUNT)


def zipf_rank(count: int, exponent: float, rng: random.Random) -> int:
    """One of `count` things; the first are more popular (0 is even)."""
    shares = _zipf(count, exponent)
    return bisect.bisect(shares, rng.random() * shares[-1])


def first_of(count: int, draw: Callable[[random.Random], int], rng: random.Random) -> int:
    """A rank below `count`, with the popularity that the first ranks have among each other."""
    while (rank := draw(rng)) >= count:
        pass
    return rank


def arrivals(count: int, rate: float, rng: random.Random, *, spread: float = 1.0) -> list[float]:
    """Seconds of each arrival, in order.

    Args:
        count: how many.
        rate: so many a second on average.
        rng: draws them.
        spread: coefficient of variation of the time between two. 1 is Poisson; more is bursty
            (gamma distributed).
    """
    shape = spread**-2
    gaps = (rng.gammavariate(shape, 1 / (shape * rate)) for _ in range(count))
    return list(itertools.accumulate(gaps))


def cumulated(shares: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """(value, share of the values up to it)."""
    total, out = 0.0, []
    for edge, share in shares:
        total += share
        out.append((edge, total))
    return out


def between(points: Sequence[tuple[float, float]], rng: random.Random) -> float:
    """A value of a distribution: (value, share of the values below)."""
    at = rng.random() * points[-1][1]
    index = bisect.bisect([share for _, share in points], at)
    low, high = points[index - 1][0], points[min(index, len(points) - 1)][0]
    return low + rng.random() * (high - low)


@cache
def _zipf(count: int, exponent: float) -> list[float]:
    return list(itertools.accumulate((i + 1) ** -exponent for i in range(count)))

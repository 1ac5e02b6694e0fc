"""Installed packages, by what requires them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution

from packaging.requirements import Requirement

from bench.gpu.environment import normal


def needed(*texts: str) -> dict[str, Distribution]:
    """Installed packages by name: these, and all that they require with their extras."""
    found: dict[str, Distribution] = {}
    waiting, seen = [Requirement(text) for text in texts], set[str]()
    while waiting:
        wanted = waiting.pop()
        key = f"{normal(wanted.name)}{sorted(wanted.extras)}"
        if key in seen:
            continue
        seen.add(key)
        try:
            found[normal(wanted.name)] = distribution(wanted.name)
        except PackageNotFoundError:
            continue  # the CUDA libraries of torch
        waiting += _required(found[normal(wanted.name)], wanted.extras)
    return found


def _required(package: Distribution, extras: Iterable[str]) -> Iterator[Requirement]:
    for text in package.requires or ():
        wanted = Requirement(text)
        marker = wanted.marker
        if marker is None or any(marker.evaluate({"extra": e}) for e in ("", *extras)):
            yield wanted

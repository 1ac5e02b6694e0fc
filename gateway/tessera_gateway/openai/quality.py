"""What `quality` means here: a number of denoising steps."""

from __future__ import annotations

from tessera.contract import SCHEDULERS
from tessera_client import ServedBundle

FACTORS = {"low": 0.5, "medium": 1.0, "high": 1.5, "xhigh": 2.0, "max": 3.0}
"""Of the bundle's usual number of steps."""
SYNONYMS = {"standard": "medium", "hd": "high"}
USUAL = "medium"
"""What `auto` and every other value means."""


def named(quality: str | None) -> str:
    """The quality that an answer names, one of `FACTORS`."""
    name = SYNONYMS.get(quality or "", quality or "")
    return name if name in FACTORS else USUAL


def steps_of(quality: str | None, scheduler: str | None, bundle: ServedBundle) -> int | None:
    """Steps of a quality, as many as the scheduler takes; `None` for the bundle's own number."""
    factor = FACTORS[named(quality)]
    if factor == 1.0:
        return None
    most = SCHEDULERS[scheduler or bundle.defaults["scheduler"]].max_steps
    return max(1, min(most, round(factor * bundle.defaults["steps"])))

"""Which requests share a call of the token-sparse UNet. Knows shapes, no engines."""

from __future__ import annotations

from collections.abc import Sequence

from tessera.denoise.running import Running
from tessera.edits.state import active_of

MAX_PADDING = 0.2
"""Largest share of padding among the rows of a call that several masks share."""


def grouped(requests: Sequence[Running], limit: int) -> list[list[Running]]:
    """Group requests of equal shapes, with little padding, in calls of at most `limit` rows."""
    waiting = sorted(requests, key=lambda r: (r.shape, -active_of(r)))
    groups: list[list[Running]] = []
    while waiting:
        first, *others = waiting
        group, waiting = [first], []
        for other in others:
            fits = other.shape == first.shape and _shared([*group, other], limit)
            (group if fits else waiting).append(other)
        groups.append(group)
    return groups


def _shared(group: Sequence[Running], limit: int) -> bool:
    """Whether requests fit into a call: few enough branches, and little padding."""
    rows = sum(r.branches for r in group)
    used = sum(r.branches * active_of(r) for r in group)
    most = max(active_of(r) for r in group)
    return rows <= limit and used >= (1 - MAX_PADDING) * most * rows

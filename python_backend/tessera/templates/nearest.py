"""Finds the recordings that are nearest to an edit.

Each branch of guidance may have a recording of its own: with its own prompt, with one that is near,
or the one with the empty prompt. They were made with the edit's LoRAs, or, for `fast`, without any;
with its ControlNets, or without any.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import groupby

import torch

from tessera.templates.keys import Nearness as Nearness
from tessera.templates.store import Recording, RecordingKey, TemplateStore
from tessera.templates.texts import ZEROED, Texts

NEAR = 0.8
"""A prompt is near another if their distance is at most this share of its distance from the empty
prompt. Measured with the demo model's text encoder (docs/internals/templates.md)."""

_VECTORS = 1024
"""How many prompts' vectors are kept in memory."""


_ORDER = tuple(Nearness)


@dataclass(frozen=True)
class Chosen:
    """The recordings of an edit.

    Attributes:
        recordings: in the order of the branches.
        branches: how many, one after the other, use each.
        nearness: of their prompts.
        without_loras: whether they were made without the edit's LoRAs.
        with_controls: whether they were made with the edit's ControlNets; `None` of an edit without
            any.
    """

    recordings: tuple[Recording, ...]
    branches: tuple[int, ...]
    nearness: Nearness
    without_loras: bool = False
    with_controls: bool | None = None


def choose(
    store: TemplateStore,
    key: RecordingKey,
    texts: Sequence[str],
    conditions: Mapping[str, torch.Tensor],
    *,
    plain: bool = False,
    guided: bool = False,
) -> Chosen | None:
    """The recordings that an edit takes; `None` if there are none that serve every branch.

    Args:
        store: has the recordings.
        key: of the recording with the edit's LoRAs and ControlNets, and the empty prompt.
        texts: of the branches, see `tessera.templates.texts.text_id`; none for unknown ones.
        conditions: the network's, a row for each branch.
        plain: whether the recording with the empty prompt is taken if there is one, rather without
            the edit's ControlNets, and one without its LoRAs if there is none with them.
        guided: whether the first branch is the negative one.
    """
    branches = _Branches(texts, conditions["encoder_hidden_states"], plain, guided)
    found = _controlled(store, key, branches)
    if found is not None or not (plain and key.adapters):
        return found
    base = _controlled(store, key.with_adapters(()), branches)
    return None if base is None else replace(base, without_loras=True)


@dataclass(frozen=True)
class _Branches:
    """Of an edit, see `choose`. `hidden` is (branches, tokens, width)."""

    texts: Sequence[str]
    hidden: torch.Tensor
    plain: bool
    guided: bool


def _controlled(store: TemplateStore, key: RecordingKey, branches: _Branches) -> Chosen | None:
    """Of the recordings with a key's ControlNets and those without any, those with the nearer
    prompts. Where both are as near, those with the ControlNets, unless `plain` asks for what edits
    took before there were any.
    """
    if not key.controls:
        return _alike(store, key, branches)
    found = [
        replace(chosen, with_controls=bool(controls))
        for controls in (((), key.controls) if branches.plain else (key.controls, ()))
        if (chosen := _alike(store, key.with_controls(controls), branches)) is not None
    ]
    return min(found, key=lambda chosen: _ORDER.index(chosen.nearness), default=None)


def _alike(store: TemplateStore, key: RecordingKey, branches: _Branches) -> Chosen | None:
    """The nearest of the recordings with the adapter set and the ControlNets of a key."""
    negative = int(branches.guided)
    keys = [key.of_negative] * negative + [key] * (len(branches.hidden) - negative)
    known = {each: store.find(each) for each in set(keys)}
    empties = [known[each] for each in keys]
    if (branches.plain and None not in empties) or not branches.texts:
        return _joined([(each, Nearness.EMPTY) if each else None for each in empties])
    each = zip(keys, empties, branches.texts, branches.hidden, strict=True)
    return _joined([_of_branch(store, *of_branch) for of_branch in each])


def _joined(found: Sequence[tuple[Recording, Nearness] | None]) -> Chosen | None:
    """The recordings of all branches; neighbours share one."""
    branches = [each for each in found if each is not None]
    if len(branches) < len(found):
        return None
    recordings, nearness = zip(*branches, strict=True)
    shared = [(recording, len(list(same))) for recording, same in groupby(recordings)]
    worst = max(nearness, key=_ORDER.index)
    return Chosen(tuple(r for r, _ in shared), tuple(count for _, count in shared), worst)


def vector_of(hidden: torch.Tensor) -> torch.Tensor:
    """What prompts are compared by: the mean (width,) of their tokens (tokens, width)."""
    return hidden.float().mean(0)


def distance(text: torch.Tensor, other: torch.Tensor, empty: torch.Tensor) -> float:
    """Distance of two prompts' vectors, relative to that of the first from the empty prompt's."""
    scale = float((text - empty).norm())
    return float((text - other).norm()) / scale if scale else float("inf")


def _of_branch(
    store: TemplateStore,
    key: RecordingKey,
    empty: Recording | None,
    text: str,
    hidden: torch.Tensor,
) -> tuple[Recording, Nearness] | None:
    own = store.find(key.with_text(text)) if text else empty
    if own is not None:
        return own, Nearness.OWN
    near = _near(store, key, hidden) if text not in ("", ZEROED) else None
    if near is not None:
        return near, Nearness.NEAR
    return None if empty is None else (empty, Nearness.EMPTY)


def _near(store: TemplateStore, key: RecordingKey, hidden: torch.Tensor) -> Recording | None:
    """The recording of the nearest prompt that is near enough."""
    close = store.patiently(lambda: _close(store, key, vector_of(hidden))) or []
    recordings = (store.find(key.with_text(other)) for other in close)
    return next((each for each in recordings if each is not None), None)


def _close(store: TemplateStore, key: RecordingKey, text: torch.Tensor) -> list[str]:
    """The recorded texts that are near, nearest first."""
    origin = _read(store.texts, key.digest)
    if origin is None:
        return []
    distances = []
    for other in set(store.prompted(key)) - {ZEROED}:  # which no prompt resembles
        vector = _read(store.texts, key.with_text(other).digest)
        if vector is not None:
            distances.append((distance(text, vector, origin), other))
    return [other for far, other in sorted(distances) if far <= NEAR]


def _read(texts: Texts, name: str) -> torch.Tensor | None:
    """The vector of a prompt in the store; `None` if it is not there."""
    try:
        return _vector(texts, name)
    except LookupError:
        return None


@lru_cache(_VECTORS)
def _vector(texts: Texts, name: str) -> torch.Tensor:
    """Read once: what a name stands for never changes."""
    text = texts.get(name)
    if text is None:
        raise LookupError(name)
    return vector_of(text["hidden"])

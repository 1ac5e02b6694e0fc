"""What the `adapters` model tells about the bundle."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tessera.contract import ADAPTERS, LIMITS, SCHEDULERS
from tessera.types import Array
from tessera_client.messages import encode_all, read_json
from tessera_client.wire import Call


def usual_schedulers() -> dict[str, int]:
    """What a server offers that does not tell: what bundles of older builders do."""
    return {str(n): spec.max_steps for n, spec in SCHEDULERS.items() if not spec.edm}


@dataclass(frozen=True)
class ServedBundle:
    """The bundle that a server serves, and what requests may ask of it.

    Attributes:
        name: as INFO has it.
        digest: of its networks.
        variant: family of its checkpoint.
        defaults: what a request gets that leaves out `steps`, `guidance`, `width`, `height` or
            `scheduler`.
        min_size, max_size: of a picture's sides, in pixels.
        controlnets: names that `controls` may have.
        control_modes: by name of a ControlNet-Union, what `mode` of its controls may be.
        sparse: whether edits may be sparse.
        measured: whether the quality of sparse edits was measured with this bundle
            (`tessera-build probe`).
        schedulers: names that `scheduler` may have, and the largest number of `steps` of each.
        limits: the largest values of other fields, by name.
        clip_skip: the largest value of `clip_skip`.
    """

    name: str
    digest: str
    variant: str
    defaults: dict[str, Any]
    min_size: int
    max_size: int
    controlnets: list[str]
    sparse: bool
    schedulers: dict[str, int] = field(default_factory=usual_schedulers)
    limits: dict[str, float] = field(default_factory=lambda: dict(LIMITS))
    control_modes: dict[str, list[str]] = field(default_factory=dict)
    clip_skip: int = 0
    measured: bool = False


def bundle_call() -> Call:
    """The call of `adapters` that tells what is served."""
    return Call("adapters", encode_all(ADAPTERS, {"ACTION": "bundle"}))


def read_bundle(outputs: Mapping[str, Array]) -> ServedBundle:
    """What `adapters` answers; fields that are not known here are left out."""
    answer = read_json(outputs)
    known = [f.name for f in dataclasses.fields(ServedBundle)]
    return ServedBundle(**{name: answer[name] for name in known if name in answer})

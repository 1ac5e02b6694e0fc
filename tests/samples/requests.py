"""A manifest, and the inputs of a request as Triton hands them over."""

from __future__ import annotations

from typing import Any

import numpy as np

from tessera.manifest import Defaults, Latents, Limits, Manifest

MANIFEST = Manifest(
    name="test",
    variant="sd15",
    tessera="0",
    defaults=Defaults(steps=20, guidance=4.0, width=128, height=128, scheduler="euler"),
    limits=Limits(min_size=64, max_size=256, max_rows=16),
    latents=Latents(channels=4, pixels=4, scale=1.0),
    graphs={},
    files={},
    versions={},
    source="",
)


TYPES: dict[str, Any] = {
    "SEED": np.int64,
    "STEPS": np.int32,
    "CLIP_SKIP": np.int32,
    "GUIDANCE": np.float32,
    "WIDTH": np.int32,
    "HEIGHT": np.int32,
    "MASK_FEATHER": np.int32,
}


def inputs(**values: Any) -> dict[str, Any]:
    values = {"PROMPT": "a red circle", **values}
    return {k: np.array([[_wire(v)]], TYPES.get(k, object)) for k, v in values.items()}


def _wire(value: Any) -> Any:
    return value.encode() if isinstance(value, str) else value

"""What a PNG says of how it was made: two text chunks.

`parameters` has the form that stable-diffusion-webui writes and other front ends read. `tessera` is
JSON, with all of INFO.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

from tessera.contract import SCHEDULERS, SPREAD_TITLES, Info

PARAMETERS, JSON = "parameters", "tessera"
"""Keywords of the chunks."""

_GIVEN = ("negative_prompt", "strength")


def texts_of(prompt: str, settings: Mapping[str, Any], info: Info) -> dict[str, str]:
    """The chunks of a picture, by keyword.

    Args:
        prompt: what was asked for.
        settings: keywords of the request; those that INFO does not repeat are read.
        info: what was done.
    """
    given = {k: settings[k] for k in _GIVEN if settings.get(k) is not None}
    content: dict[str, Any] = {"prompt": prompt, **given, "info": asdict(info)}
    return {PARAMETERS: _parameters(prompt, given, info), JSON: json.dumps(content)}


def _parameters(prompt: str, given: Mapping[str, Any], info: Info) -> str:
    loras = [f"<lora:{lora['name']}:{lora['weight']:g}>" for lora in info.loras]
    lines = [" ".join([prompt, *loras])]
    if given.get("negative_prompt"):
        lines.append(f"Negative prompt: {given['negative_prompt']}")
    spec = SCHEDULERS.get(info.scheduler)
    fields = {
        "Steps": info.steps,
        "Sampler": spec.title if spec else info.scheduler,
        "Schedule type": SPREAD_TITLES.get(spec.spread) if spec else None,
        "CFG scale": f"{info.guidance:g}",
        "Seed": info.seed,
        "Size": f"{info.width}x{info.height}",
        "Model": info.bundle,
        "Clip skip": info.clip_skip + 1 if info.clip_skip else None,
        "Denoising strength": given.get("strength"),
        "Version": f"tessera {version('tessera')}",
    }
    lines.append(", ".join(f"{k}: {v}" for k, v in fields.items() if v is not None))
    return "\n".join(lines)

"""Requests with LoRAs, and the pictures that diffusers makes of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline, EulerDiscreteScheduler

from tessera.adapters.updates import PARTS
from tests.fakes import lora
from tests.fakes.checkpoint import topology
from tests.fakes.kinds import ManyDeltas

PROMPT = "a large blue star at the top on a green background"
COMMON = {"PROMPT": PROMPT, "STEPS": 4, "WIDTH": 64, "HEIGHT": 64, "SCHEDULER": "euler"}
LINEAR = (*lora.ATTENTION, "proj_in", "net.0.proj", "net.2", "fc1")
FILES = {
    "a": ("kohya", 4, LINEAR),
    "b": ("peft", 6, lora.ATTENTION),
    "c": ("diffusers", 2, (*LINEAR, "conv1", "conv_shortcut")),
}
"""Name of a LoRA -> layout, rank, modules."""


def loras(*chosen: tuple[str, float] | tuple[str, float, float]) -> str:
    keys = ("name", "weight", "text_weight")
    return json.dumps([dict(zip(keys, choice, strict=False)) for choice in chosen])


def by_diffusers(
    variant: str, bundle: Path, chosen: list[tuple[str, float, float]], seed: int
) -> Any:
    """`load_lora_weights` and `set_adapters` on the same files."""
    pipe = _pipeline(variant, bundle)
    for name, _, _ in chosen:
        pipe.load_lora_weights(str(bundle / "adapters" / f"{name}.safetensors"), adapter_name=name)
    weights = [
        {"unet": w, **{p: t for p in ("text_encoder", "text_encoder_2") if hasattr(pipe, p)}}
        for _, w, t in chosen
    ]
    pipe.set_adapters([name for name, _, _ in chosen], adapter_weights=weights)
    return _picture(pipe, seed)


def by_formulas(
    variant: str, bundle: Path, chosen: list[tuple[ManyDeltas, float]], seed: int
) -> Any:
    """Diffusers' pipeline with weights that were merged in float64, each file's beside the base."""
    pipe = _pipeline(variant, bundle)
    base = {
        (part, name): parameter.detach().double()
        for part in PARTS
        if hasattr(pipe, part)
        for name, parameter in getattr(pipe, part).named_parameters()
    }
    for deltas, weight in chosen:
        for (part, name), delta in deltas.items():
            parameter = getattr(pipe, part).get_parameter(name)
            parameter.data = (parameter.data.double() + delta(base[part, name], weight)).float()
    return _picture(pipe, seed)


def _pipeline(variant: str, bundle: Path) -> DiffusionPipeline:
    pipe = topology(variant)
    pipe.set_progress_bar_config(disable=True)
    config = json.loads((bundle / "scheduler" / "scheduler_config.json").read_text())
    pipe.scheduler = EulerDiscreteScheduler.from_config(config)
    return pipe


def _picture(pipe: DiffusionPipeline, seed: int) -> Any:
    generator = torch.Generator("cpu").manual_seed(seed)
    result = pipe(
        PROMPT, num_inference_steps=4, guidance_scale=4.0, width=64, height=64, generator=generator
    )
    return np.asarray(result.images[0], np.int16)


def apart(one: Any, other: Any) -> int:
    return int(np.abs(np.asarray(one, np.int16) - other).max())

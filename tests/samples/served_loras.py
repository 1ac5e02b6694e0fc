"""LoRAs for the demo model: files of random numbers, requests, and what diffusers makes of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import StableDiffusionPipeline

from bench.server import DEMO_CHECKPOINT
from tessera_client import Client, Lora, Result

PROMPT = "a large red circle at the left on a blue background"
OPTIONS: dict[str, Any] = {"steps": 6, "guidance": 4.0, "scheduler": "euler"}
FILES = {"test-a": ("kohya", 4), "test-b": ("peft", 8), "test-c": ("diffusers", 2)}


def pipeline() -> StableDiffusionPipeline:
    pipe = StableDiffusionPipeline.from_pretrained(DEMO_CHECKPOINT)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(client: Client, *loras: Lora, seed: int = 5) -> Result:
    return client.generate(PROMPT, seed=seed, loras=loras, **OPTIONS)


def apart(one: Any, other: Any) -> int:
    return int(np.abs(np.asarray(one, np.int16) - np.asarray(other, np.int16)).max())


def by_diffusers(files: Path, chosen: list[Lora]) -> Any:
    """The same request with `load_lora_weights` and `set_adapters`."""
    pipe = pipeline()
    for one in chosen:
        path = files / f"{one.name}.safetensors"
        pipe.load_lora_weights(str(path), adapter_name=one.name)
    weights = [
        {"unet": c.weight, "text_encoder": c.weight if c.text_weight is None else c.text_weight}
        for c in chosen
    ]
    pipe.set_adapters([c.name for c in chosen], adapter_weights=weights)
    return pipe(
        PROMPT,
        num_inference_steps=OPTIONS["steps"],
        guidance_scale=OPTIONS["guidance"],
        generator=torch.Generator("cpu").manual_seed(5),
    ).images[0]

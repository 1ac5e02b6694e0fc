"""Gives the demo model's text encoder a head start: it learns to say what a prompt describes before
the UNet learns to draw it.

Trained together from nothing, the UNet learns what pictures look like long before it finds out that
the prompt says which one is wanted (after 2,000 steps it drew scenes at random). A linear readout
of the *mean* over all tokens is what a cross-attention layer sees before it has learned where to
look; so the scene's attributes are put there.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional
from transformers import CLIPTextModel, CLIPTokenizer

from tessera_build.demo.scenes import (
    COLOURS,
    PATTERNS,
    POSITIONS,
    SHAPES,
    SIZES,
    Scene,
    paraphrase,
    sample_scene,
)

BATCH = 64
PEAK_RATE = 2e-3
_FIELDS = (SHAPES, COLOURS, tuple(SIZES))


def tokenize(tokenizer: CLIPTokenizer, prompts: list[str]) -> torch.Tensor:
    """Token ids (n, 77), padded and cut as diffusers does."""
    batch = tokenizer(
        prompts,
        padding="max_length",
        max_length=tokenizer.model_max_length,
        truncation=True,
        return_tensors="pt",
    )
    ids: torch.Tensor = batch.input_ids
    return ids


def train_text_encoder(
    text_encoder: CLIPTextModel,
    tokenizer: CLIPTokenizer,
    steps: int,
    *,
    seed: int,
    device: torch.device,
    report: Callable[[int, str], None],
) -> None:
    """Classify prompts: background, pattern, and what is at each of the positions, if anything."""
    torch.manual_seed(seed)
    rng = random.Random(seed)
    classes = [len(COLOURS), len(PATTERNS)]
    classes += [len(field) + 1 for field in _FIELDS] * len(POSITIONS)
    head = nn.Linear(text_encoder.config.hidden_size, sum(classes)).to(device)
    nn.Module.to(text_encoder, device)
    text_encoder.train()
    parameters = [*text_encoder.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=PEAK_RATE, weight_decay=0.01, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, PEAK_RATE, total_steps=steps, pct_start=0.1
    )
    for step in range(steps):
        scenes = [sample_scene(rng) for _ in range(BATCH)]
        ids = tokenize(tokenizer, [paraphrase(scene, rng) for scene in scenes]).to(device)
        targets = torch.tensor([_targets(scene) for scene in scenes], device=device)
        with torch.autocast(device.type, dtype=torch.bfloat16):
            logits = head(text_encoder(ids)[0].mean(1)).float().split(classes, dim=1)
        losses = [functional.cross_entropy(p, targets[:, i]) for i, p in enumerate(logits)]
        loss = torch.stack(losses).sum()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        report(step + 1, f"loss {loss.item():.2f}")


def _targets(scene: Scene) -> list[int]:
    """Class numbers: background, pattern, then shape, colour and size at each position (0 is
    nothing there).
    """
    there = {item.position: item for item in scene.items}
    targets = [COLOURS.index(scene.background), PATTERNS.index(scene.pattern)]
    for position in POSITIONS:
        item = there.get(position)
        values = (item.shape, item.colour, item.size) if item else (None,) * len(_FIELDS)
        targets += [
            0 if value is None else 1 + field.index(value)
            for field, value in zip(_FIELDS, values, strict=True)
        ]
    return targets

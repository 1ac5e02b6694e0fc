"""Arrays, keys and recordings of templates."""

from __future__ import annotations

import numpy as np
import torch

from tessera.templates.storage import Storage
from tessera.templates.store import Recording, RecordingKey, TemplateStore

PICTURE = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)


def arrays(step: int, tokens: int = 50) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    return {
        "halo.conv": torch.randn(tokens, 8, generator=generator),
        "key.attn": torch.randn(2, tokens, 4, generator=generator),
        "norm.n": torch.rand(2, 4, generator=generator),
        "norm_rows.n": torch.rand(tokens, 2, 4, generator=generator),
    }


def key_of(template: str = "t", steps: int = 4) -> RecordingKey:
    return RecordingKey("bundle", template, "euler", steps, 0)


EXACT = Storage("float32")


def filled(store: TemplateStore, key: RecordingKey, storage: Storage = EXACT) -> Recording:
    return store.record(key, storage, ((s, arrays(s)) for s in storage.kept(key.steps)))

"""Plans, and requests that run by them."""

from __future__ import annotations

import torch

from tessera.denoise.running import Running, start
from tessera.denoise.sampler import Sampler
from tessera.plan import Plan
from tests.samples.schedulers import DEMO


def plan(**changes: object) -> Plan:
    fields: dict[str, object] = {
        "slot": 0,
        "ticket": 1,
        "job_id": "j",
        "seed": 1,
        "steps": 4,
        "guidance": 4.0,
        "width": 64,
        "height": 64,
        "scheduler": "euler",
        "started": 0.0,
    }
    return Plan(**(fields | changes))  # type: ignore[arg-type]


def running(wanted: Plan) -> Running:
    sampler = Sampler(wanted.scheduler, DEMO, steps=wanted.steps, seed=wanted.seed)
    generator = torch.Generator().manual_seed(wanted.seed)
    text = torch.randn(2 if wanted.guided else 1, 5, 8, generator=generator)
    conditions = {"encoder_hidden_states": text}
    return start(wanted, conditions, sampler, shape=(4, wanted.height // 4, wanted.width // 4))

"""What models hand on to each other: plans and stats, which are signed, and tensors with their
checksums.

What does not arrive as it was sent ends its request with UNAVAILABLE. Imports no torch: the light
processes use it, too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING

from tessera.checksum import check_sum, checksum
from tessera.contract import Info, Stats
from tessera.errors import Forbidden, Unavailable
from tessera.plan import Plan
from tessera.requests.tensors import check_tensors
from tessera.triton import pb
from tessera.types import Array

if TYPE_CHECKING:
    import torch

TENSORS = ("TEXT", "POOLED", "CLEAN", "ACTIVE", "MASKED", "CONTROL")
"""What `encode` hands on to `denoise` beside the plan."""

MASK_SUM = "mask_sum"
"""Parameter of `edit`'s call of `decode`: the checksum of MASK."""


def plan_of(inputs: Mapping[str, pb.TensorHandle]) -> Plan:
    """The plan among the inputs of a request.

    Raises:
        Forbidden: this server has not made it.
    """
    return Plan.from_json(_verified(inputs["PLAN"]))


def tensor_of_plan(plan: Plan) -> pb.TensorHandle:
    """The input that `plan_of` reads."""
    return _signed("PLAN", plan.to_json())


def copied(plan: Plan, inputs: Mapping[str, pb.TensorHandle]) -> dict[str, torch.Tensor]:
    """Copies of `TENSORS`, which stay when Triton takes its memory back. The copies are what is
    checked.

    Raises:
        InvalidInput, Unavailable: as `check_tensors`.
    """
    copies = {name: pb.to_torch(inputs[name]).clone() for name in TENSORS if name in inputs}
    arrays = {name: copy[None].cpu().numpy() for name, copy in copies.items()}
    check_tensors(arrays, plan.shapes, plan.sums, TENSORS)
    return copies


def denoised(plan: Plan, latents: Array, stats: Stats) -> list[pb.TensorHandle]:
    """LATENTS and STATS of a job."""
    content = {
        "ticket": plan.ticket,
        "latents": checksum(latents),
        "stats": json.loads(stats.to_json()),
    }
    return [pb.tensor("LATENTS", latents), _signed("STATS", json.dumps(content).encode())]


def stats_of(plan: Plan, inputs: Mapping[str, pb.TensorHandle]) -> tuple[Stats, int]:
    """The stats that `denoised` made for this job, and the checksum of its latents.

    Raises:
        Unavailable: they are not there, or not those of this job.
    """
    try:
        content = json.loads(_verified(inputs["STATS"]))
        if content["ticket"] == plan.ticket:
            return Stats.from_json(json.dumps(content["stats"])), content["latents"]
    except (Forbidden, LookupError):
        pass  # seen on 2.51 in the second in which tritonserver ended, of a request that was right
    raise Unavailable(
        f"what denoise has answered for job {plan.job_id} was lost; send the request again"
    )


def drawn(answer: Mapping[str, pb.TensorHandle]) -> Info:
    """INFO of an answer of `decode`, whose IMAGE has been found to be the one it speaks of.

    Raises:
        Unavailable: either is damaged.
    """
    try:
        info = Info.from_json(pb.text(answer["INFO"]))
    except (ValueError, TypeError, AttributeError):
        raise Unavailable("INFO was damaged on its way; send the request again") from None
    if info.image_crc32 is not None:
        check_sum("IMAGE", answer["IMAGE"].as_numpy(), info.image_crc32)
    return info


def _signed(name: str, text: bytes) -> pb.TensorHandle:
    return pb.tensor(name, pb.key().sign(name, text))


def _verified(handle: pb.TensorHandle) -> bytes:
    return pb.key().verified(handle.name(), pb.text(handle))

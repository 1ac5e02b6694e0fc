"""What models hand on to each other: plans and stats, which are signed, and tensors with their
checksums.

What does not arrive as it was sent ends its request with UNAVAILABLE, wherever that can be told
from a stranger's request. Imports no torch: the light processes use it, too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from tessera.contract import Info, Stats, checksum
from tessera.errors import Corrupted, Forbidden
from tessera.plan import Plan
from tessera.requests.fields import Inputs
from tessera.requests.tensors import check_whole
from tessera.triton import pb
from tessera.types import Array, Tensors

TENSORS = ("TEXT", "POOLED", "CLEAN", "ACTIVE", "MASKED", "CONTROL")
"""What `encode` hands on to `denoise` beside the plan."""

SUMS = "tensor_sums"
"""Parameter of calls of `edit`: the checksums of inputs by name, as an object of JSON."""


def plan_of(inputs: Mapping[str, pb.TensorHandle], *, called: bool = False) -> Plan:
    """The plan among the inputs of a request.

    Args:
        inputs: of the request.
        called: whether another model of this server has sent them.

    Raises:
        Forbidden: this server has not made it.
        Corrupted: the same, of a call.
    """
    try:
        return Plan.from_json(_verified(inputs["PLAN"]))
    except Forbidden:
        if called:
            raise Corrupted("PLAN") from None
        raise


def tensor_of_plan(plan: Plan) -> pb.TensorHandle:
    """The input that `plan_of` reads."""
    return _signed("PLAN", plan.to_json())


def sums_of(inputs: Mapping[str, pb.TensorHandle]) -> dict[str, Any]:
    """Parameter of a call that says the checksums of its inputs, but those of texts."""
    arrays = {name: handle.as_numpy() for name, handle in inputs.items()}
    sums = {name: checksum(array) for name, array in arrays.items() if array.dtype != object}
    return {SUMS: json.dumps(sums)}


def sums_in(request: pb.Request) -> dict[str, int]:
    """What `sums_of` has said; nothing of a request that is no call."""
    if not pb.is_call(request):
        return {}
    said: dict[str, int] = json.loads(pb.parameters(request).get(SUMS, "{}"))
    return said


def check_given(request: pb.Request, inputs: Inputs) -> None:
    """See whether the inputs of a call are those that were sent.

    Raises:
        Corrupted: one is not.
    """
    for name, expected in sums_in(request).items():
        if name not in inputs or checksum(inputs[name]) != expected:
            raise Corrupted(name)


def copied(plan: Plan, inputs: Mapping[str, pb.TensorHandle]) -> Tensors:
    """Copies of `TENSORS`, which stay when Triton takes its memory back. The copies are what is
    checked.

    Raises:
        InvalidInput, Corrupted: as `check_whole`.
    """
    copies = {name: pb.to_torch(inputs[name]).clone() for name in TENSORS if name in inputs}
    arrays = {name: copy[None].cpu().numpy() for name, copy in copies.items()}
    check_whole(arrays, plan.shapes, plan.sums, TENSORS)
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
        Corrupted: they are not there, or not those of this job.
    """
    try:
        content = json.loads(_verified(inputs["STATS"]))
        if content["ticket"] == plan.ticket:
            return Stats.from_json(json.dumps(content["stats"])), content["latents"]
    except (Forbidden, LookupError):
        pass  # seen on 2.51 in the second in which tritonserver ended, of a request that was right
    raise Corrupted("STATS")


def drawn(plan: Plan, answer: Mapping[str, pb.TensorHandle]) -> tuple[Info, Array]:
    """INFO of an answer of `decode`, and a copy of IMAGE, found to be the one it speaks of.

    Raises:
        Corrupted: one of them is not what `decode` has answered for this job.
    """
    try:
        info = Info.from_json(pb.text(answer["INFO"]))
    except (ValueError, TypeError, AttributeError):
        raise Corrupted("INFO") from None
    if info.job_id != plan.job_id:
        raise Corrupted("INFO")
    image: Array = answer["IMAGE"].as_numpy().copy()
    if checksum(image) != info.image_crc32:
        raise Corrupted("IMAGE")
    return info, image


def _signed(name: str, text: bytes) -> pb.TensorHandle:
    return pb.tensor(name, pb.key().sign(name, text))


def _verified(handle: pb.TensorHandle) -> bytes:
    return pb.key().verified(handle.name(), pb.text(handle))

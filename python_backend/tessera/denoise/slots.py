"""How many requests take part in a step, and which.

On a GPU a step of several requests takes little longer than that of one. On a CPU it takes as many
times as long (docs/internals/measurements.md#whose-turn-it-is), so whoever joins makes all others
slower and nothing cheaper. Then most requests end sooner if one is drawn at a time. Several places
on the CPU share the rows of a step, and each needs some.

If more requests are here than there are slots, the slots go to the highest response ratio: how long
a request has been here, over how long it still needs (Hansen 1971 has it for whole jobs). Between
two steps every request can be stopped and go on later at no cost, other than that of a refit where
LoRAs take turns. So short requests overtake long ones that have just begun. A long one gets its
turn, as its ratio grows without bound while it waits, and one that is nearly done is finished.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from tessera.contract.limits import CPU_SLOTS
from tessera.denoise.running import Running
from tessera.errors import BundleError
from tessera.shared.settings import CPU

Cost = Callable[[str, tuple[int, int], float], float]
"""What one branch of a step takes, by its kind ("dense" or "sparse"), the (height, width) of the
latents and the tokens that it computes, in any unit."""
CONTROL = 0.5
"""What a ControlNet takes of a dense step: it is the UNet's encoder half."""


def slots_of(wanted: int, most: int, places: Iterable[str]) -> int:
    """The slots of a server.

    Args:
        wanted: by the operator; 0 leaves it to the devices.
        most: of the model.
        places: of the UNet's devices.

    Raises:
        BundleError: more are wanted than there may be.
    """
    if wanted > most:
        raise BundleError(f"TESSERA_SLOTS is {wanted}; accepted: 0 to {most}")
    if wanted:
        return wanted
    on = list(places)
    return min(CPU_SLOTS * len(on), most) if set(on) == {CPU} else most


def by_tokens(kind: str, size: tuple[int, int], tokens: float) -> float:
    """A cost for bundles of which no other is known: proportional to tokens."""
    return tokens


def in_turn(requests: Sequence[Running], slots: int, cost: Cost, now: float) -> list[Running]:
    """The requests that have a slot in the next step: those of the highest priority, and of the
    highest response ratio among equals. They are in the order of priority and arrival, so that
    the same requests are the same batch.

    Args:
        requests: unfinished ones.
        slots: how many there are.
        cost: of steps.
        now: `time.monotonic()`.
    """
    if len(requests) <= slots:
        return by_arrival(requests)

    def key(request: Running) -> tuple[int, float, int]:
        waited = max(0.0, now - request.plan.started)
        return request.plan.priority, -waited / work_left(request, cost), request.plan.ticket

    return by_arrival(sorted(requests, key=key)[:slots])


def by_arrival(requests: Iterable[Running]) -> list[Running]:
    """Requests by priority, and by arrival among equals."""
    return sorted(requests, key=lambda r: (r.plan.priority, r.plan.ticket))


def work_left(request: Running, cost: Cost) -> float:
    """What all further steps of a request take, more than 0, in the unit of `cost`. ControlNets
    count for all dense steps, also those that begin later or end earlier.
    """
    height, width = request.latents.shape[2:]
    left, sparse, active = request.sampler.evaluations - request.step, 0, 0
    if request.sparse is not None:
        sparse, active = sum(request.sparse.kinds[request.step :]), request.sparse.active_latents
    controls = sum(control.use.scale != 0 for control in request.controls)
    branch = (left - sparse) * cost("dense", (height, width), height * width)
    branch *= 1 + CONTROL * controls
    if sparse:
        branch += sparse * cost("sparse", (height, width), active)
    return max(request.branches * branch, 1e-9)

"""How many requests take part in a step.

On a GPU a step of several requests takes little longer than that of one. On a CPU it takes as many
times as long (docs/internals/measurements.md#ablations), so whoever joins makes all others slower
and nothing cheaper. Then most requests end sooner if they are drawn in the order in which they
came. Several places on the CPU share the rows of a step, and each needs some.
"""

from __future__ import annotations

from collections.abc import Iterable

from tessera.contract.limits import CPU_SLOTS
from tessera.errors import BundleError
from tessera.shared.settings import CPU


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

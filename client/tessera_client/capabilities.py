"""What a server can do: its bundle, its LoRAs, and how busy it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tessera import contract
from tessera_client.adapters import Adapter
from tessera_client.bundle import ServedBundle
from tessera_client.messages import encode_all
from tessera_client.wire import Call


@dataclass(frozen=True)
class Busy:
    """How busy a server is.

    Attributes:
        slots: jobs that it denoises at a time.
        running: jobs that are denoised.
        waiting: jobs that wait for a slot.
    """

    slots: int
    running: int
    waiting: int


@dataclass(frozen=True)
class Capabilities:
    """What requests may ask of a server.

    Attributes:
        bundle: with defaults, limits, schedulers and ControlNets.
        loras: those that can be used, and those that cannot with the reason; files of textual
            inversion too, which have a `word`.
        busy: how much there is to do now; `None` if the server does not tell, or
            tells operators only.
    """

    bundle: ServedBundle
    loras: list[Adapter]
    busy: Busy | None

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON has it: what `tessera info --json` prints, and the gateway answers."""
        bundle, busy = self.bundle, self.busy
        return {
            "model": bundle.name,
            "variant": bundle.variant,
            "digest": bundle.digest,
            "defaults": bundle.defaults,
            "sparse": bundle.sparse,
            "measured": bundle.measured,
            "loras": [{"name": a.name, "problem": a.problem} for a in self.loras if not a.word],
            "words": [a.word for a in self.loras if a.word and not a.problem],
            "controlnets": bundle.controlnets,
            "control_modes": bundle.control_modes,
            "schedulers": [{"name": n, "max_steps": m} for n, m in bundle.schedulers.items()],
            "modes": list(contract.MODES),
            "edit_qualities": list(contract.EDIT_QUALITIES),
            "preprocessors": list(contract.PREPROCESSORS),
            "resizes": list(contract.RESIZES),
            "limits": {
                "min_size": bundle.min_size,
                "max_size": bundle.max_size,
                "clip_skip": bundle.clip_skip,
                **bundle.limits,
            },
            "jobs": None if busy is None else vars(busy),
        }


def load_call() -> Call:
    """The call of `jobs` that tells how busy the server is."""
    return Call("jobs", encode_all(contract.JOBS, {"ACTION": "load"}))


def busy_of(load: Mapping[str, Any]) -> Busy:
    """What `jobs` answers to `load`."""
    running: Sequence[Any] = load["running"]
    return Busy(int(load["slots"]), len(running), len(load["waiting"]))

"""Where the networks of a server run: the values of `--place`.

A *place* is what an operator writes: `auto`, `cpu` or a GPU such as `gpu:1`. What torch calls it is
a device (see `tessera.engines.devices`). Standard library only.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from tessera.errors import TesseraError, brief, listing
from tessera.shared.settings import AUTO, AUTOMATIC, GPU, PlaceSettings, read_place

NETWORKS = ("unet", "vae", "text_encoders")
"""What `--place` names beside ControlNets. No ControlNet can have such a name."""


@dataclass(frozen=True)
class Places:
    """Where all networks run.

    Attributes:
        networks: those that every bundle has.
        controlnets: places of ControlNets, by name; `auto` for those that are not listed.
    """

    networks: PlaceSettings = AUTOMATIC
    controlnets: Mapping[str, str] = field(default_factory=dict)


def read_places(pairs: Iterable[str], controlnets: Iterable[str]) -> Places:
    """Parse `NAME=PLACE` arguments of the command line; a later one replaces an earlier one.

    Raises:
        TesseraError: an argument has another form, or names what is neither a network nor one of
            the `controlnets`.
    """
    known, networks, of_controlnets = set(controlnets), AUTOMATIC, dict[str, str]()
    for pair in pairs:
        name, _, text = pair.partition("=")
        found = text.split(",") if name == "unet" else [text]
        try:
            found = [read_place(text) for text in found]
        except ValueError:
            raise TesseraError(
                f"--place is {brief(pair)}; accepted: NAME=PLACE, where PLACE is auto, cpu or "
                "gpu:N (N from 0); for unet several with commas between"
            ) from None
        if name == "unet":
            networks = replace(networks, unet=_unet(pair, found))
        elif name in NETWORKS:
            networks = _placed(networks, name, text)
        elif name in known:
            of_controlnets[name] = text
        else:
            accepted = listing([*NETWORKS, *known])
            raise TesseraError(f"--place names {brief(name)}; accepted: {accepted}")
    return Places(networks, of_controlnets)


def _placed(networks: PlaceSettings, name: str, place: str) -> PlaceSettings:
    if name == "vae":
        return replace(networks, vae=place)
    return replace(networks, text_encoders=place)


def _unet(pair: str, found: list[str]) -> tuple[str, ...]:
    gpus = [place for place in found if place.startswith(GPU)]
    if len(set(gpus)) < len(gpus) or (AUTO in found and len(found) > 1):
        raise TesseraError(
            f"--place is {brief(pair)}; accepted: each GPU once, cpu any number of times, or auto "
            "alone"
        )
    return tuple(found)

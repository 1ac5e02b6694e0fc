"""What a worker tells of itself: the answer of `jobs` to ACTION load, as a router reads it.

`tessera.shared.load` in the runtime writes it. Fields that a worker of another version does not
have get their defaults, and those that are not known here are left out.
"""

from __future__ import annotations

import math
from functools import cached_property

import msgspec


class Running(msgspec.Struct, frozen=True):
    """A request that is being denoised.

    Attributes:
        left: steps that are left.
        sparse: how many of these are sparse.
        branches: rows that it takes in a call.
        height, width: of its latents.
        active: latents that a sparse step computes.
        loras: names and weights of the LoRAs in the UNet.
    """

    job: str = ""
    left: int = 0
    sparse: int = 0
    branches: int = 1
    height: int = 1
    width: int = 1
    active: int = 0
    loras: tuple[tuple[str, float], ...] = ()
    controls: tuple[str, ...] = ()


class Waiting(msgspec.Struct, frozen=True):
    """A request that is not denoised yet."""

    job: str = ""
    steps: int = 0


class Recorded(msgspec.Struct, frozen=True):
    """A recording of a template.

    Attributes:
        kept: its steps that are on disk: all that it has.
        host, device: how many of them are in the host's memory, and on the device.
        prompted: whether there is one with a prompt, too.
    """

    template: str = ""
    scheduler: str = ""
    steps: int = 0
    kept: int = 0
    host: int = 0
    device: int = 0
    prompted: bool = False


class Cost(msgspec.Struct, frozen=True, array_like=True):
    """How far a measured cost is from its line.

    Attributes:
        kind: dense or sparse.
        bucket: of tokens, on a logarithmic scale.
    """

    kind: str
    height: int
    width: int
    bucket: int
    factor: float


class Lines(msgspec.Struct, frozen=True):
    """Milliseconds of a branch of a step, as the step chooser knows them.

    Attributes:
        dense, sparse: (constant, slope by tokens).
        factors: corrections by kind, size and tokens.
    """

    dense: tuple[float, float] = (0.0, 0.0)
    sparse: tuple[float, float] = (0.0, 0.0)
    factors: tuple[Cost, ...] = ()

    def at(self, kind: str, height: int, width: int, tokens: float) -> float:
        """Expected milliseconds of a branch of one step."""
        constant, slope = self.sparse if kind == "sparse" else self.dense
        return (constant + slope * tokens) * self._factor(kind, height, width, tokens)

    def _factor(self, kind: str, height: int, width: int, tokens: float) -> float:
        """Of the closest bucket, as the step chooser chooses it."""
        near = [f for f in self.factors if (f.kind, f.height, f.width) == (kind, height, width)]
        if not near:
            return 1.0
        bucket = round(4 * math.log2(max(1.0, tokens)))
        return min(near, key=lambda f: abs(f.bucket - bucket)).factor


class Defaults(msgspec.Struct, frozen=True):
    """What a request gets that says nothing, and what the bundle is like.

    Attributes:
        pixels: of a latent, on a side.
        smallest, largest: sides of a picture that is drawn; 0 if the worker does not tell.
        embedded: whether the UNet takes the guidance scale as an input.
        quality: of an edit that names none.
    """

    steps: int = 20
    width: int = 512
    height: int = 512
    guidance: float = 7.5
    scheduler: str = ""
    pixels: int = 8
    smallest: int = 0
    largest: int = 0
    embedded: bool = False
    quality: str = "fast"


class Policy(msgspec.Struct, frozen=True, array_like=True):
    """What an edit does for its quality: its margin in latents, and which evaluations are dense:
    every `every`-th, 0 for none, and those in these fifths of the schedule.
    """

    margin: int
    every: int = 0
    fifths: tuple[int, ...] = ()


Policies = tuple[tuple[float, tuple[Policy, ...]], ...]
"""Those for masks up to a share of the picture."""


class Load(msgspec.Struct, frozen=True, dict=True):
    """A worker.

    Attributes:
        worker: its id, also in the INFO of its pictures.
        slots: requests that it denoises at a time.
        templates: ids of the templates it knows, recorded or not.
        merged: LoRA sets (names and weights) whose merged weights it keeps.
        current: the LoRA set in the UNet.
        parsed: names of LoRAs whose files it has read.
        side: whether different LoRA sets share its calls.
        controls: names of loaded ControlNets.
        read_ms: what it takes to read a kept step of a recording from disk.
        refit_ms: what it takes to put another LoRA set into the UNet.
        decode_ms: from the last step to the picture.
        policies: what an edit does for its quality, by that and by how near the recording's prompt
            is (own or empty).
    """

    worker: str = ""
    slots: int = 1
    running: tuple[Running, ...] = ()
    waiting: tuple[Waiting, ...] = ()
    templates: frozenset[str] = frozenset()
    recordings: tuple[Recorded, ...] = ()
    merged: tuple[tuple[tuple[str, float], ...], ...] = ()
    current: tuple[tuple[str, float], ...] = ()
    parsed: tuple[str, ...] = ()
    side: bool = False
    controls: tuple[str, ...] = ()
    lines: Lines = Lines()
    read_ms: float = 0.0
    refit_ms: float = 0.0
    decode_ms: float = 0.0
    defaults: Defaults = Defaults()
    policies: dict[str, dict[str, Policies]] = {}

    def recording(self, template: str, scheduler: str, steps: int) -> Recorded | None:
        """The recording that an edit needs, or `None`."""
        return self._index.get((template, scheduler, steps))

    @cached_property
    def _index(self) -> dict[tuple[str, str, int], Recorded]:
        return {(each.template, each.scheduler, each.steps): each for each in self.recordings}


_DECODER = msgspec.json.Decoder(Load)


def read_load(text: bytes) -> Load:
    """A worker's answer.

    Raises:
        msgspec.MsgspecError: it is none.
    """
    return _DECODER.decode(text)

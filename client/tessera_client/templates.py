"""What the `templates` model is asked and answers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tessera.contract import TEMPLATES
from tessera.types import Array
from tessera_client.controls import control_inputs, controls_of
from tessera_client.fitting import whole_frame
from tessera_client.messages import encode_all, loras_of, read_json
from tessera_client.pictures import Picture, rgb_of
from tessera_client.wire import Call


@dataclass(frozen=True)
class Recorded:
    """A template whose activations have been recorded.

    Attributes:
        template: its id, for `edit`.
        steps, scheduler: the edits it serves.
        storage: form of the numbers, and every which step is kept.
        bytes: on the server's disk.
        recorded: whether it was recorded now; False if it had been before.
        seconds: that took.
        copies: workers of a fleet that have recorded it.
        prompt: id of the prompt it was recorded with; empty for the empty one.
        loras: name and weight of each LoRA in the UNet that it was recorded with.
        controls: name, scale, digest of the image, first evaluation and the one behind the last of
            each ControlNet that it was recorded with.
    """

    template: str
    steps: int
    scheduler: str
    storage: str
    bytes: int
    recorded: bool
    seconds: float
    copies: int = 1
    prompt: str = ""
    loras: list[dict[str, Any]] = field(default_factory=list)
    controls: list[dict[str, Any]] = field(default_factory=list)


def register_call(
    image: Picture | None, *, loras: Sequence[Any], controls: Sequence[Any], **given: Any
) -> Call:
    """The call of `templates` that records one; `given` are inputs by their names in Python."""
    pixels = None if image is None else rgb_of("image", image)
    inputs = {name.upper(): value for name, value in given.items()}
    if chosen := loras_of(loras):
        inputs["LORAS"] = json.dumps(chosen)
    frame = None if pixels is None else whole_frame((pixels.shape[1], pixels.shape[0]))
    inputs |= control_inputs(controls_of(controls), frame)
    return _call(ACTION="register", IMAGE=pixels, **inputs)


def list_call() -> Call:
    """The call of `templates` that lists what there is."""
    return _call(ACTION="list")


def evict_call(template: str) -> Call:
    """The call of `templates` that removes one."""
    return _call(ACTION="evict", TEMPLATE=template)


def read_answer(outputs: Mapping[str, Array]) -> dict[str, Any]:
    """What `templates` answers."""
    return read_json(outputs)


def _call(**given: Any) -> Call:
    return Call("templates", encode_all(TEMPLATES, given))

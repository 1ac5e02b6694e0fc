"""What the `templates` model is asked and answers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tessera.contract import TEMPLATES
from tessera_client.edits import Picture, rgb_of
from tessera_client.messages import Array, encode


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
    """

    template: str
    steps: int
    scheduler: str
    storage: str
    bytes: int
    recorded: bool
    seconds: float


def register_inputs(
    image: Picture | None, template: str | None, steps: int | None, scheduler: str | None
) -> dict[str, Array]:
    """The inputs of `templates` that record a template."""
    pixels = None if image is None else rgb_of(image)
    return _inputs(
        ACTION="register", IMAGE=pixels, TEMPLATE=template, STEPS=steps, SCHEDULER=scheduler
    )


def list_inputs() -> dict[str, Array]:
    """The inputs of `templates` that list what there is."""
    return _inputs(ACTION="list")


def evict_inputs(template: str) -> dict[str, Array]:
    """The inputs of `templates` that remove a template."""
    return _inputs(ACTION="evict", TEMPLATE=template)


def read_answer(outputs: Mapping[str, Array]) -> dict[str, Any]:
    """What `templates` answers."""
    content: dict[str, Any] = json.loads(outputs["RESULT"].reshape(-1)[0])
    return content


def _inputs(**given: Any) -> dict[str, Array]:
    wanted = {name: value for name, value in given.items() if value is not None}
    return {s.name: encode(s, wanted[s.name]) for s in TEMPLATES.inputs if s.name in wanted}

"""What the `templates` model is asked and answers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tessera.contract import TEMPLATES
from tessera.types import Array
from tessera_client.messages import encode_all
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
    """

    template: str
    steps: int
    scheduler: str
    storage: str
    bytes: int
    recorded: bool
    seconds: float


def register_call(
    image: Picture | None, template: str | None, steps: int | None, scheduler: str | None
) -> Call:
    """The call of `templates` that records one."""
    pixels = None if image is None else rgb_of(image)
    return _call(
        ACTION="register", IMAGE=pixels, TEMPLATE=template, STEPS=steps, SCHEDULER=scheduler
    )


def list_call() -> Call:
    """The call of `templates` that lists what there is."""
    return _call(ACTION="list")


def evict_call(template: str) -> Call:
    """The call of `templates` that removes one."""
    return _call(ACTION="evict", TEMPLATE=template)


def read_answer(outputs: Mapping[str, Array]) -> dict[str, Any]:
    """What `templates` answers."""
    content: dict[str, Any] = json.loads(outputs["RESULT"].reshape(-1)[0])
    return content


def _call(**given: Any) -> Call:
    return Call("templates", encode_all(TEMPLATES, given))

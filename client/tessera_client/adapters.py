"""What the `adapters` model is asked and answers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from tessera.contract import ADAPTERS
from tessera.types import Array
from tessera_client.messages import encode_all
from tessera_client.wire import Call


@dataclass(frozen=True)
class Adapter:
    """A LoRA file of the server, or one of textual inversion.

    Attributes:
        name: as `loras` names it.
        bytes: of the file.
        digest: of its content.
        layout: kohya, diffusers, peft or comfyui.
        ranks: smallest and largest; `None` for a kind without ranks.
        targets: how many weights it changes, by network.
        family: of the checkpoints that it is for, as far as it fits the server's bundle; `None` for
            a file that was not read yet.
        problem: why it cannot be used; `None` if it can, and else nothing but name and bytes is
            known.
        kinds: lora, dora, loha, lokr, ia3, full, or textual_inversion.
        skipped: by which rules tensors of the file were skipped, each with their number.
        word: what a prompt has for the vectors of a textual inversion; `None` for a LoRA.
    """

    name: str
    bytes: int
    digest: str | None = None
    layout: str | None = None
    ranks: tuple[int, int] | None = None
    targets: dict[str, int] = field(default_factory=dict)
    family: str | None = None
    problem: str | None = None
    kinds: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    word: str | None = None


def adapters_call() -> Call:
    """The call of `adapters` that lists what there is."""
    return Call("adapters", encode_all(ADAPTERS, {"ACTION": "list"}))


def read_adapters(outputs: Mapping[str, Array]) -> list[Adapter]:
    """What `adapters` answers."""
    rows = json.loads(outputs["RESULT"].reshape(-1)[0])["adapters"]
    return [Adapter(**row | {"ranks": row["ranks"] and tuple(row["ranks"])}) for row in rows]

"""How much one request may bring, and the error for whatever is not passed on."""

from __future__ import annotations

from dataclasses import dataclass

KIB, MIB = 2**10, 2**20


class Refused(Exception):
    """A request that is not passed on; `str(error)` is one sentence for the caller.

    Attributes:
        status: HTTP status of the answer.
    """

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


@dataclass(frozen=True)
class Limits:
    """Limits of one inference, in bytes unless stated otherwise.

    Attributes:
        body: the whole body.
        json: a body that is JSON as a whole, numbers of pictures included. Reading it takes up to
            ten times as much memory.
        head: the JSON in front of binary tensors.
        part: the JSON of one field other than a picture's numbers.
        text: one text, such as a prompt or LORAS.
        texts: all texts of one tensor, such as REGION_PROMPTS, and their JSON. Reading lists within
            lists takes up to 45 times as much memory.
        elements: number of texts in one tensor.
        parameters: number of request parameters.
        objects: number of JSON objects.
        side: largest dimension of a tensor.
    """

    body: int = 256 * MIB
    json: int = 8 * MIB
    head: int = 64 * KIB
    part: int = 64 * KIB
    text: int = 64 * KIB
    texts: int = 256 * KIB
    elements: int = 64
    parameters: int = 32
    objects: int = 4096
    side: int = 65_536


LIMITS = Limits()

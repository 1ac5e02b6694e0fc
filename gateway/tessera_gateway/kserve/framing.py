"""What a request's headers say about its body, and in which they are answered."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tessera.errors import InvalidInput
from tessera_gateway.kserve.limits import Limits, Refused

HEAD_LENGTH = "inference-header-content-length"
ANSWERED = ("content-type", "content-length", HEAD_LENGTH)
"""Headers of Triton's answers that are passed back."""


@dataclass(frozen=True)
class Framing:
    """How a body is divided.

    Attributes:
        head: bytes of JSON in front of binary tensors; `None` if all of it is JSON.
        whole: bytes of all of it; `None` if that is not known before its end.
    """

    head: int | None
    whole: int | None


def read_framing(headers: Mapping[str, str], limits: Limits) -> Framing:
    """How the body is divided that comes behind these headers.

    Raises:
        Refused: it is compressed, or too large.
        InvalidInput: a length is none.
    """
    encoding = headers.get("content-encoding", "identity")
    if encoding.lower() != "identity":
        raise Refused(
            415, f"Content-Encoding is {encoding[:40]!r}; accepted: a body that is not compressed"
        )
    given = headers.get(HEAD_LENGTH)
    head = None if given is None else _head(given, limits)
    whole = int(headers["content-length"]) if "content-length" in headers else None
    limit = limits.body if head is not None else limits.json
    if whole is not None and whole > limit:
        raise Refused(413, f"the body has {whole} bytes; accepted: at most {limit}")
    return Framing(head, whole)


def _head(given: str, limits: Limits) -> int:
    if not (given.isascii() and given.isdigit() and len(given) < 10):
        raise InvalidInput("Inference-Header-Content-Length", given, "a number of bytes")
    if not 1 <= int(given) <= limits.head:
        raise InvalidInput(
            "Inference-Header-Content-Length", int(given), f"1 to {limits.head} bytes"
        )
    return int(given)

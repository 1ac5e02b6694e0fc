"""Every error that a caller may see.

::

    TesseraError
    ├── InvalidInput   INVALID_ARG  a field has a value that is not accepted
    ├── UnknownJob     NOT_FOUND    no job of that id is known
    ├── Cancelled      CANCELLED    the job was cancelled
    ├── Unavailable    UNAVAILABLE  not now: busy or restarting; may succeed later
    ├── TimedOut       UNAVAILABLE  nobody waits for the answer any more
    ├── BundleError    INTERNAL     the bundle cannot be served
    └── InternalError  INTERNAL     a fault of the server; the log repeats the id in its text

`status` is the name of the Triton status code that an error travels as. Standard library only.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable

_LISTED = 20
"""How many names an error lists."""


class TesseraError(Exception):
    """Base of the tree; `str(error)` is one sentence for the caller."""

    status = "INTERNAL"


class InvalidInput(TesseraError):
    """A field of a request holds a value that is not accepted.

    Args:
        field: name of the input, as in the contract (`STEPS`, `LORAS[0].weight`).
        value: what was given; long values are cut.
        accepted: what would have been accepted.
    """

    status = "INVALID_ARG"

    def __init__(self, field: str, value: object, accepted: str) -> None:
        super().__init__(f"{field} is {brief(value)}; accepted: {accepted}")
        self.field = field
        self.value = value
        self.accepted = accepted

    @classmethod
    def received(cls, sentence: str) -> InvalidInput:
        """The error that a server's sentence stands for; parts that it does not name are empty."""
        match = re.fullmatch(r"(\S+) is (.*); accepted: (.*)", sentence, re.DOTALL)
        error = cls(*match.groups()) if match else cls("", "", "")
        error.args = (sentence,)
        return error


class UnknownJob(TesseraError):
    """No job of that id is known (any more)."""

    status = "NOT_FOUND"

    def __init__(self, job_id: str) -> None:
        super().__init__(f"JOB_ID is {brief(job_id)}; accepted: the id of a running or recent job")


class Cancelled(TesseraError):
    """The job was cancelled; its slot is free."""

    status = "CANCELLED"


class Unavailable(TesseraError):
    """The server cannot take the request now; trying again later may succeed.

    `undone` says that the request is known to have had no effect, so that sending it again is safe.
    """

    status = "UNAVAILABLE"

    def __init__(self, sentence: str, *, undone: bool = True) -> None:
        super().__init__(sentence)
        self.undone = undone


class TimedOut(TesseraError):
    """The client stopped waiting for an answer, or the request's time was over in a queue."""

    status = "UNAVAILABLE"


class BundleError(TesseraError):
    """The bundle is missing, damaged or of another version."""


class InternalError(TesseraError):
    """A fault of the server."""


def brief(value: object, limit: int = 80) -> str:
    """A value as it appears in an error: quoted if text, one line, at most `limit` characters of
    it.
    """
    text = value if isinstance(value, str) else repr(value)
    cut = text if len(text) <= limit else f"{text[:limit]}... ({len(text)} characters)"
    return repr(cut) if isinstance(value, str) else cut


def listing(names: Iterable[str]) -> str:
    """Names in a sentence: `a, b, c`, or `none`."""
    return ", ".join(sorted(names)) or "none"


def unknown_name(field: str, name: str, known: Collection[str], what: str) -> InvalidInput:
    """For a name of a LoRA or ControlNet (`what`) that is not among those known: lists the close
    ones, or else all.
    """
    if not known:
        return InvalidInput(field, name, f"nothing, since no {what} is installed")
    close = difflib.get_close_matches(name, known, n=5)
    if 0 < len(close) < len(known):
        accepted = f"one of the {len(known)} installed {what}s; close: {listing(close)}"
        return InvalidInput(field, name, accepted)
    more = f" and {len(known) - _LISTED} more" if len(known) > _LISTED else ""
    return InvalidInput(field, name, f"{listing(sorted(known)[:_LISTED])}{more}")

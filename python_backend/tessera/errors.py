"""Every error that a caller may see.

::

    TesseraError
    ├── InvalidInput   INVALID_ARG  a field has a value that is not accepted
    ├── Forbidden      INVALID_ARG  an internal model was called from outside of the server
    ├── UnknownJob     NOT_FOUND    no job of that id is known
    ├── Cancelled      CANCELLED    the job was cancelled
    ├── Unavailable    UNAVAILABLE  not now: busy or restarting; may succeed later
    │   └── Corrupted  UNAVAILABLE  something did not arrive as it was sent
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

RESTARTING = "a model is being restarted; try again in a few seconds"
_ACCEPTED = "; accepted: "
_RESTARTING = (
    "is not healthy",
    "Failed to process the request",
    "is not ready",
    "is not at ready state",
    "Request for unknown model",
)
_LITERAL = r"(?:['\"\[{(\d-]|(?:nan|inf|None|True|False)$)"
"""How a value begins in a sentence."""


class TesseraError(Exception):
    """Base of the tree; `str(error)` is one sentence for the caller."""

    status = "INTERNAL"


class InvalidInput(TesseraError):
    """A field of a request is not accepted: it has a wrong value, or another problem (`described`).

    Args:
        field: name of the input, as in the contract (`STEPS`, `LORAS[0].weight`).
        value: what was given; long values are cut.
        accepted: what would have been accepted.

    Attributes:
        problem: what is wrong, if that is not the value as it stands (`is missing`); else empty.
    """

    status = "INVALID_ARG"

    def __init__(self, field: str, value: object, accepted: str) -> None:
        super().__init__(f"{field} is {brief(value)}; accepted: {accepted}")
        self.field = field
        self.value = value
        self.accepted = accepted
        self.problem = ""

    @classmethod
    def described(cls, field: str, problem: str, accepted: str) -> InvalidInput:
        """The error of a field whose value says nothing, or is not there: `MASK has no pixel of 128
        or more`. The problem goes on after the field's name, in a sentence.
        """
        error = cls(field, None, accepted)
        error.problem = problem
        error.args = (f"{field} {problem}; accepted: {accepted}",)
        return error

    @classmethod
    def received(cls, sentence: str) -> InvalidInput:
        """The error that a server's sentence stands for; parts that it does not name are empty.

        A value is as `brief` writes it; whatever else stands there describes a problem.
        """
        match = re.fullmatch(r"(\S+) (.*); accepted: (.*)", sentence, re.DOTALL)
        field, problem, accepted = match.groups() if match else ("", "", "")
        value = re.fullmatch(rf"is ({_LITERAL}.*)", problem, re.DOTALL)
        if value or not match:
            error = cls(field, value[1] if value else "", accepted)
        else:
            error = cls.described(field, problem, accepted)
        error.args = (sentence,)
        return error


class Forbidden(TesseraError):
    """An internal model was called by somebody else than this server.

    Triton's Python backend (2.51) has no status for that. This is the nearest of those that tell a
    client not to try again.
    """

    status = "INVALID_ARG"

    def __init__(self) -> None:
        super().__init__(
            "this model takes requests from the server's own models only; "
            "send yours to generate or edit"
        )


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


class Corrupted(Unavailable):
    """Something did not arrive as it was sent. The request may have been right.

    Args:
        name: of the input or output.
    """

    def __init__(self, name: str) -> None:
        super().__init__(f"{name} was corrupted on its way; send the request again")


class TimedOut(TesseraError):
    """The client stopped waiting for an answer, or the request's time was over in a queue."""

    status = "UNAVAILABLE"


class BundleError(TesseraError):
    """The bundle is missing, damaged or of another version."""


class InternalError(TesseraError):
    """A fault of the server."""


def is_restarting(sentence: str) -> bool:
    """Whether Triton says by a sentence that a model's process has ended, or is being loaded.

    It has no status for that: as a member of an ensemble, such a model is an internal error or
    unknown.
    """
    return _ACCEPTED not in sentence and any(words in sentence for words in _RESTARTING)


def brief(value: object, limit: int = 80) -> str:
    """A value as it appears in an error: quoted if text, one line, at most `limit` characters of
    it.
    """
    text = value if isinstance(value, str) else _written(value)
    cut = text if len(text) <= limit else f"{text[:limit]}... ({len(text)} characters)"
    return repr(cut) if isinstance(value, str) else cut


def _written(value: object) -> str:
    try:
        return repr(value)
    except (RecursionError, ValueError):  # nested deeply, or an integer of thousands of digits
        return f"<{type(value).__name__}>"


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

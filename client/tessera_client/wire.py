"""What HTTP and gRPC share: one run of a model, and errors of the wire as ours."""

from __future__ import annotations

import asyncio
import json
import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tessera.contract import checksum
from tessera.errors import (
    RESTARTING,
    Cancelled,
    Corrupted,
    InternalError,
    InvalidInput,
    TesseraError,
    TimedOut,
    Unavailable,
    UnknownJob,
    is_restarting,
)
from tessera.types import Array

GRACE_S = 1.0
"""So much longer than its caller a request waits in the server's queues."""
_BY_STATUS: dict[str, type[TesseraError]] = {
    "400": InvalidInput,
    "401": InvalidInput,
    "403": InvalidInput,
    "404": UnknownJob,
    "413": InvalidInput,
    "429": Unavailable,
    "503": Unavailable,
    "INVALID_ARGUMENT": InvalidInput,
    "UNAUTHENTICATED": InvalidInput,
    "PERMISSION_DENIED": InvalidInput,
    "NOT_FOUND": UnknownJob,
    "CANCELLED": Cancelled,
    "RESOURCE_EXHAUSTED": Unavailable,
    "UNAVAILABLE": Unavailable,
}
_TYPES = {
    "b": "BOOL",
    "u1": "UINT8",
    "i4": "INT32",
    "i8": "INT64",
    "f4": "FP32",
    "O": "BYTES",
}


def whole(outputs: dict[str, Array]) -> dict[str, Array]:
    """The outputs of a model, if their picture is the one that the server has drawn.

    Raises:
        Corrupted: it is another, or what is said of it cannot be read.
    """
    if "IMAGE" in outputs and "INFO" in outputs:
        try:
            said = json.loads(outputs["INFO"].reshape(-1)[0]).get("image_crc32")
        except (ValueError, AttributeError):
            raise Corrupted("INFO") from None
        if said is not None and checksum(outputs["IMAGE"]) != said:
            raise Corrupted("IMAGE")
    return outputs


class ErrorAnswer(Exception):
    """A server's answer that is an error.

    Attributes:
        message: its sentence.
        status: of HTTP (`400`) or gRPC (`INVALID_ARGUMENT`).
    """

    def __init__(self, message: str, status: str) -> None:
        super().__init__(message)
        self.message = message
        self.status = status


@dataclass(frozen=True)
class Call:
    """One run of a model: named arrays to send, names of those to get, request parameters, and its
    priority (0 is the usual one).
    """

    model: str
    inputs: Mapping[str, Array]
    outputs: tuple[str, ...] = ("RESULT",)
    parameters: Mapping[str, str] = field(default_factory=dict)
    priority: int = 0

    def settings(self, timeout: float) -> dict[str, Any]:
        """All parameters of a request whose caller stops waiting after `timeout` seconds."""
        waits: dict[str, Any] = {"timeout": int(1e6 * (timeout + GRACE_S))}
        if self.priority:  # the one for Triton's queues, the other for the server's models
            waits |= {"priority": self.priority, "job_priority": self.priority}
        return waits | dict(self.parameters)


def datatype_of(array: Array) -> str:
    """KServe's name of an array's type; arrays of objects hold bytes."""
    kind = array.dtype
    return _TYPES[kind.kind if kind.kind in "bO" else f"{kind.kind}{kind.itemsize}"]


def numpy_of(datatype: str) -> np.dtype[Any]:
    """The type of a datatype's arrays, little endian.

    Raises:
        KeyError: it is none that Tessera has.
    """
    return np.dtype({name: code for code, name in _TYPES.items()}[datatype]).newbyteorder("<")


def received(error: Exception, address: str, timeout: float) -> TesseraError:
    """The Tessera error that an exception of the wire stands for."""
    if isinstance(error, ssl.SSLError) or "certificate" in type(error).__name__.lower():
        reason = f"{address} does not prove that it is the server: {_first_line(error)}"
        return Unavailable(reason, undone=False)
    if isinstance(
        error, ConnectionRefusedError | ConnectionResetError | BrokenPipeError
    ) or _no_connection(error):
        refused = (
            isinstance(error, ConnectionRefusedError) or "failed to connect" in str(error).lower()
        )
        refused = refused or "cannot connect" in str(error).lower()
        return Unavailable(f"no server answers at {address}: {_first_line(error)}", undone=refused)
    if (
        isinstance(error, TimeoutError | asyncio.TimeoutError)
        or "Deadline Exceeded" in str(error)
        or "timed out" in str(error).lower()
    ):
        return TimedOut(f"no answer from {address} within {timeout:g} s")
    if isinstance(error, ErrorAnswer):
        return _answer(error.status, error.message)
    return InternalError(
        f"talking to {address} failed: {type(error).__name__}: {_first_line(error)}"
    )


def _answer(status: str, message: str) -> TesseraError:
    sentence = re.sub(r"^in ensemble '\w+', ", "", message).strip()
    kind = _BY_STATUS.get(status, InternalError)
    if is_restarting(sentence):
        return Unavailable(f"{RESTARTING} ({sentence})")
    if sentence.endswith("Request timeout expired"):  # Triton's words, of a queue
        return TimedOut("the request waited in a queue of the server for longer than its timeout")
    if status == "400" and re.match(r"job .* was cancelled", sentence):
        kind = Cancelled  # Triton's HTTP endpoint answers both with 400
    if kind is InvalidInput:
        return InvalidInput.received(sentence)
    error = kind.__new__(kind)
    TesseraError.__init__(error, sentence)
    if isinstance(error, Unavailable):
        error.undone = True
    return error


def _no_connection(error: Exception) -> bool:
    if isinstance(error, ErrorAnswer):
        text = str(error).lower()
        return "failed to connect" in text or "connection reset" in text or "socket closed" in text
    return type(error).__name__ in (
        "ClientConnectorError",
        "ClientConnectorDNSError",
        "ClientOSError",
        "ClientPayloadError",
        "ServerDisconnectedError",
        "IncompleteRead",
        "RemoteDisconnected",
        "gaierror",
    )


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]

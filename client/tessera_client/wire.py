"""What HTTP and gRPC share: URLs, calls as tritonclient takes them, its errors as ours."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from tessera.errors import (
    Cancelled,
    InternalError,
    InvalidInput,
    TesseraError,
    TimedOut,
    Unavailable,
    UnknownJob,
)
from tessera.types import Array

CHANNEL = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.use_local_subchannel_pool", 1),
]
GRACE_S = 1.0
"""So much longer than its caller a request waits in the server's queues."""
_BY_STATUS: dict[str, type[TesseraError]] = {
    "400": InvalidInput,
    "404": UnknownJob,
    "503": Unavailable,
    "INVALID_ARGUMENT": InvalidInput,
    "NOT_FOUND": UnknownJob,
    "CANCELLED": Cancelled,
    "UNAVAILABLE": Unavailable,
}


@dataclass(frozen=True)
class Call:
    """One run of a model: named arrays to send, names of those to get, request parameters."""

    model: str
    inputs: Mapping[str, Array]
    outputs: tuple[str, ...] = ("RESULT",)
    parameters: Mapping[str, str] = field(default_factory=dict)

    def arguments(self, triton: ModuleType, timeout: float) -> dict[str, Any]:
        """What `infer` takes of the client in a module of tritonclient; after `timeout` seconds the
        caller stops waiting.
        """
        inputs = []
        for name, array in self.inputs.items():
            tensor = triton.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
            tensor.set_data_from_numpy(np.ascontiguousarray(array))
            inputs.append(tensor)
        return {
            "model_name": self.model,
            "inputs": inputs,
            "outputs": [triton.InferRequestedOutput(name) for name in self.outputs],
            "timeout": int(1e6 * (timeout + GRACE_S)),
            "parameters": dict(self.parameters),
        }

    def arrays(self, answer: Any) -> dict[str, Array]:
        """The arrays that were asked for, of what `infer` returned."""
        return {name: answer.as_numpy(name) for name in self.outputs}


def split_url(url: str) -> tuple[str, str]:
    """(scheme, host:port) of a server's URL; ports default to 8000 (HTTP) and 8001 (gRPC).

    Raises:
        InvalidInput: it is not of that form.
    """
    accepted = "http://host[:port] or grpc://host[:port]"
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise InvalidInput("url", url, accepted) from None
    if parts.scheme not in ("http", "grpc") or not parts.hostname or parts.path.strip("/"):
        raise InvalidInput("url", url, accepted)
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return parts.scheme, f"{host}:{port or (8000 if parts.scheme == 'http' else 8001)}"


def received(error: Exception, address: str, timeout: float) -> TesseraError:
    """The Tessera error that an exception of tritonclient (or of a socket below it) stands for."""
    if isinstance(
        error, ConnectionRefusedError | ConnectionResetError | BrokenPipeError
    ) or _no_connection(error):
        refused = (
            isinstance(error, ConnectionRefusedError) or "failed to connect" in str(error).lower()
        )
        refused = refused or "cannot connect" in str(error).lower()
        return Unavailable(f"no server answers at {address}: {_first_line(error)}", undone=refused)
    if (
        isinstance(error, TimeoutError)
        or "Deadline Exceeded" in str(error)
        or "timed out" in str(error).lower()
    ):
        return TimedOut(f"no answer from {address} within {timeout:g} s")
    if isinstance(error, InferenceServerException):
        return _answer(str(error.status()).rpartition(".")[2], error.message())
    return InternalError(
        f"talking to {address} failed: {type(error).__name__}: {_first_line(error)}"
    )


def _answer(status: str, message: str) -> TesseraError:
    sentence = re.sub(r"^in ensemble '\w+', ", "", message).strip()
    kind = _BY_STATUS.get(status, InternalError)
    if "is not healthy" in sentence or sentence.startswith("Request for unknown model"):
        # Triton's words for a model whose process has died, and for one that is being loaded
        return Unavailable(f"a model is being restarted; try again in a few seconds ({sentence})")
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
    if isinstance(error, InferenceServerException):
        text = str(error).lower()
        return "failed to connect" in text or "connection reset" in text or "socket closed" in text
    return type(error).__name__ in (
        "ClientConnectorError",
        "ServerDisconnectedError",
        "IncompleteRead",
    )


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]

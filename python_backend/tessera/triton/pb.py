"""Everything that Tessera asks of Triton's Python backend, in one place.

Turns requests into arrays and results or errors into responses. Whatever an error is, the caller
gets one sentence and the right status; a traceback goes to the server's log only.
"""

from __future__ import annotations

import json
import re
import traceback
import uuid
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import triton_python_backend_utils as pb_utils

from tessera.errors import InternalError, TesseraError, TimedOut, Unavailable
from tessera.shared.activity import Activity
from tessera.shared.settings import ServerSettings
from tessera.types import Array

if TYPE_CHECKING:
    import torch

Request: TypeAlias = Any
Response: TypeAlias = Any
TensorHandle: TypeAlias = Any
"""A tensor as Triton holds it; may be handed on without being copied."""

_CALLED = "tessera_called"
"""Parameter of requests that one model makes to another."""

_EXPIRED, _FULL = "Request timeout expired", "Exceeds maximum queue size"
_NOT_HEALTHY = (
    "is not healthy",
    "Failed to process the request",
    "is not ready",
    "is not at ready state",
)


def arrays(request: Request) -> dict[str, Array]:
    """The inputs that a request carries, by name, as numpy arrays with their batch dimension."""
    return {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}


def handles(request: Request) -> dict[str, TensorHandle]:
    """The inputs that a request carries, untouched."""
    return {tensor.name(): tensor for tensor in request.inputs()}


def parameters(request: Request) -> dict[str, Any]:
    """A request's parameters, by name."""
    content: dict[str, Any] = json.loads(request.parameters() or "{}")
    return content


def timeout(request: Request) -> int:
    """After how many microseconds in a queue a request is not wanted any more; 0 if never."""
    return int(request.timeout())


def text(handle: TensorHandle) -> bytes:
    """The single element of a BYTES tensor."""
    value: bytes = handle.as_numpy().reshape(-1)[0]
    return value


def to_torch(handle: TensorHandle) -> torch.Tensor:
    """A tensor as torch sees it, on the device it is on, without a copy and without its batch
    dimension.
    """
    from torch.utils.dlpack import from_dlpack

    return from_dlpack(handle.to_dlpack())[0]


def tensor(name: str, value: bytes | Array) -> TensorHandle:
    """A tensor to send: text, or an array; the batch dimension is added here."""
    array = np.array([value], object) if isinstance(value, bytes) else value
    return pb_utils.Tensor(name, np.ascontiguousarray(array[None]))


def tensor_of(name: str, value: torch.Tensor) -> TensorHandle:
    """A torch tensor to send, from the device it is on; the batch dimension is added here."""
    if value.is_cuda:
        return pb_utils.Tensor.from_dlpack(name, value[None].contiguous())
    return tensor(name, value.numpy())


def respond(outputs: Sequence[TensorHandle]) -> Response:
    """A successful response."""
    return pb_utils.InferenceResponse(output_tensors=list(outputs))


def fail(request: Request, error: Exception) -> Response:
    """The response for an error: a `TesseraError` as it is, anything else as an internal error.

    Where the request came from `call`, the sentence starts with the status in brackets, which
    `call`
    takes off: through BLS, Triton 2.51 tells the caller no status but INTERNAL.
    """
    known = error if isinstance(error, TesseraError) else _internal(error)
    tagged = _CALLED in json.loads(request.parameters() or "{}")
    sentence = f"[{known.status}] {known}" if tagged else str(known)
    return pb_utils.InferenceResponse(
        error=pb_utils.TritonError(sentence, getattr(pb_utils.TritonError, known.status))
    )


def answer_each(
    requests: Sequence[Request], answer: Callable[[Request], Sequence[TensorHandle]]
) -> list[Response]:
    """One response per request; an error of one does not touch the others."""
    responses = []
    with _activity(ServerSettings.from_environment().activity).busy():
        for request in requests:
            try:
                responses.append(respond(answer(request)))
            except Exception as error:
                responses.append(fail(request, error))
    return responses


_activity = cache(Activity)


def call(
    model: str,
    inputs: Sequence[TensorHandle],
    outputs: Sequence[str],
    parameters: Mapping[str, Any] = MappingProxyType({}),
    timeout: int = 0,
) -> dict[str, TensorHandle]:
    """Run another model of this server on the inputs, with those request parameters and that
    `timeout`.

    Raises:
        TesseraError: of the same status and with the same sentence as that model's error.
        Unavailable: that model's process has ended or is being restarted.
        TimedOut: the request waited in that model's queue for longer than its timeout.
    """
    request = pb_utils.InferenceRequest(
        model_name=model,
        inputs=list(inputs),
        requested_output_names=list(outputs),
        parameters={**parameters, _CALLED: True},
        timeout=timeout,
    )
    response = request.exec()
    if response.has_error():
        raise _received(model, response.error().message())
    return {name: pb_utils.get_output_tensor_by_name(response, name) for name in outputs}


def load_model(model: str) -> None:
    """Load a model of this server; returns when it can be called.

    Raises:
        Unavailable: it could not be loaded; why is in the server's log.
    """
    _control("load", lambda: pb_utils.load_model(model_name=model), model)


def unload_model(model: str) -> None:
    """Have a model of this server unloaded; its process may still be there when this returns.

    Raises:
        Unavailable: the server does not let models be unloaded.
    """
    _control("unload", lambda: pb_utils.unload_model(model_name=model), model)


def is_ready(model: str) -> bool:
    """Whether a model of this server is loaded.

    Raises:
        Unavailable: the server could not tell.
    """
    return bool(_control("find", lambda: pb_utils.is_model_ready(model_name=model), model))


def _control(verb: str, change: Callable[[], Any], model: str) -> Any:
    try:
        return change()
    except Exception as error:  # the backend's own type, which it does not export
        log(f"could not {verb} the {model} model: {error}")
        raise Unavailable(
            f"the {model} model could not be {_PAST[verb]}; the server's log has the details"
        ) from error


_PAST = {"load": "loaded", "unload": "unloaded", "find": "found"}


def reschedule(request: Request) -> None:
    """Ask Triton to bring a request of a sequence back with the next batch."""
    request.set_release_flags(pb_utils.TRITONSERVER_REQUEST_RELEASE_RESCHEDULE)


class Gauge:
    """A figure among the server's metrics; one process may make it."""

    def __init__(self, name: str, description: str) -> None:
        family = pb_utils.MetricFamily(
            name=name, description=description, kind=pb_utils.MetricFamily.GAUGE
        )
        self._family = family
        self._metric = family.Metric(labels={})
        self._said: float | None = None

    def set(self, value: float) -> None:
        """Say the value, if it is another than the last: to say it is a call to the server."""
        if value != self._said:
            self._metric.set(value)
            self._said = value


def log(message: str) -> None:
    """A line in the server's log."""
    pb_utils.Logger.log_warn(f"tessera: {message}")


def _internal(error: Exception) -> InternalError:
    identity = uuid.uuid4().hex[:12]
    trace = "".join(traceback.format_exception(error))
    pb_utils.Logger.log_error(f"tessera: internal error {identity}\n{trace}")
    return InternalError(f"internal error {identity}; the server's log has the details")


def _received(model: str, message: str) -> TesseraError:
    """The error that another model's message stands for."""
    tag = re.match(r"\[([A-Z_]+)\] ", message)
    if tag:
        error = TesseraError(message[tag.end() :])
        error.status = tag.group(1)
        return error
    if any(part in message for part in _NOT_HEALTHY):
        return Unavailable(f"the {model} model is being restarted; try again in a few seconds")
    if message.endswith(_EXPIRED):
        return TimedOut(message)
    if message.endswith(_FULL):
        return Unavailable(f"the queue of the {model} model is full; try again later")
    return TesseraError(message)

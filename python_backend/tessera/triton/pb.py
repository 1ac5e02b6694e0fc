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

from tessera.errors import (
    Corrupted,
    InternalError,
    InvalidInput,
    TesseraError,
    TimedOut,
    Unavailable,
    is_restarting,
)
from tessera.shared.activity import Activity
from tessera.shared.processes import WARM_UP
from tessera.shared.settings import ServerSettings
from tessera.shared.signing import FIRST, ServerKey
from tessera.types import Array

if TYPE_CHECKING:
    import torch

Request: TypeAlias = Any
Response: TypeAlias = Any
TensorHandle: TypeAlias = Any
"""A tensor as Triton holds it; may be handed on without being copied."""

Series: TypeAlias = Any
"""One of the server's metrics with its labels: `increment`, `set` or `observe`, by its kind."""

_CALLED = "tessera_called"
"""Parameter of requests that one model makes to another: the word of `ServerKey`."""

EXPIRED = "Request timeout expired"
"""Triton's words for a request that has waited in a queue for longer than its timeout."""
_FULL = "Exceeds maximum queue size"


def arrays(request: Request) -> dict[str, Array]:
    """The inputs that a request carries, by name, as numpy arrays with their batch dimension."""
    return {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}


def handles(request: Request) -> dict[str, TensorHandle]:
    """The inputs that a request carries, untouched."""
    return {tensor.name(): tensor for tensor in request.inputs()}


def parameters(request: Request) -> dict[str, Any]:
    """A request's parameters, by name.

    Raises:
        InvalidInput: a text among them is not UTF-8. Triton passes on what it gets.
    """
    try:
        content: dict[str, Any] = json.loads(request.parameters() or "{}")
    except ValueError:
        raise InvalidInput.described("parameters", "cannot be read", "texts in UTF-8") from None
    return content


def timeout(request: Request) -> int:
    """After how many microseconds in a queue a request is not wanted any more; 0 if never."""
    return int(request.timeout())


def is_call(request: Request) -> bool:
    """Whether another model of this server has made a request."""
    try:
        return key().knows(parameters(request).get(_CALLED))
    except InvalidInput:
        return False


def check_call(request: Request) -> None:
    """See whether another model of this server has made a request.

    Raises:
        Forbidden: somebody else has.
    """
    key().check_word(parameters(request).get(_CALLED))


def check_job_id(request: Request, job_id: str) -> None:
    """See whether a request may have this job id.

    Raises:
        InvalidInput: it is one of the server's own first pictures, and others have made it.
    """
    if job_id.startswith(WARM_UP) and not key().knows_first(parameters(request).get(FIRST)):
        raise InvalidInput("JOB_ID", job_id, f"an id that does not begin with {WARM_UP}")


@cache
def key() -> ServerKey:
    """Of this server."""
    return ServerKey(ServerSettings.from_environment().key)


def text(handle: TensorHandle) -> bytes:
    """The single element of a BYTES tensor; empty without one."""
    values: list[bytes] = handle.as_numpy().reshape(-1).tolist()
    return values[0] if values else b""


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
    `call` takes off: through BLS, Triton 2.51 tells the caller no status but INTERNAL.
    """
    error = known(error)
    if isinstance(error, Corrupted):
        log(str(error))
    tagged = is_call(request)
    sentence = f"[{error.status}] {error}" if tagged else str(error)
    sendable = sentence.encode(errors="backslashreplace").decode()  # half a character, as of a path
    return pb_utils.InferenceResponse(
        error=pb_utils.TritonError(sendable, getattr(pb_utils.TritonError, error.status))
    )


def known(error: Exception) -> TesseraError:
    """What the caller gets for an error: itself, or an internal error, which is the same each
    time. Engines' errors quote their runtime, which names paths and nodes of graphs: these are for
    the log.
    """
    for_log = isinstance(error, InternalError) and not str(error).startswith(_SAID)
    if isinstance(error, TesseraError) and not for_log:
        return error
    if "internal" not in vars(error):
        vars(error)["internal"] = _internal(error)
    internal: TesseraError = vars(error)["internal"]
    return internal


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
        parameters={**parameters, _CALLED: key().word},
        timeout=timeout,
    )
    response = request.exec()
    if response.has_error():
        raise _received(model, response.error().message())
    found = {name: pb_utils.get_output_tensor_by_name(response, name) for name in outputs}
    if None in found.values():  # seen on 2.51 in the second in which tritonserver ended
        raise _restarting(model)
    return found


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


def metric(
    name: str, description: str, kind: str, labels: Mapping[str, str], bounds: Sequence[float] = ()
) -> Series:
    """One series among the server's metrics. It is the server's: processes that ask for the same
    one share it, and it outlives them.

    Args:
        name: of the metric.
        description: what it counts or measures.
        kind: `counter`, `gauge` or `histogram`.
        labels: of the series.
        bounds: of a histogram's buckets.
    """
    family = pb_utils.MetricFamily(
        name=name, description=description, kind=getattr(pb_utils.MetricFamily, kind.upper())
    )
    _families.append(family)  # has to outlive its series
    return family.Metric(labels=dict(labels), **({"buckets": list(bounds)} if bounds else {}))


_families: list[Any] = []


def log(message: str) -> None:
    """A line in the server's log."""
    pb_utils.Logger.log_warn(_loggable(f"tessera: {message}"))


def _loggable(text: str) -> str:
    """The backend takes UTF-8 only; names of files may be something else."""
    return text.encode(errors="backslashreplace").decode()


_SAID = "internal error"


def _internal(error: Exception) -> InternalError:
    identity = uuid.uuid4().hex[:12]
    trace = "".join(traceback.format_exception(error))
    pb_utils.Logger.log_error(_loggable(f"tessera: internal error {identity}\n{trace}"))
    return InternalError(f"{_SAID} {identity}; the server's log has the details")


def _restarting(model: str) -> Unavailable:
    return Unavailable(f"the {model} model is being restarted; try again in a few seconds")


def _received(model: str, message: str) -> TesseraError:
    """The error that another model's message stands for."""
    tag = re.match(r"\[([A-Z_]+)\] ", message)
    if tag:
        error = TesseraError(message[tag.end() :])
        error.status = tag.group(1)
        return error
    if is_restarting(message):
        return _restarting(model)
    if message.endswith(EXPIRED):
        return TimedOut(message)
    if message.endswith(_FULL):
        return Unavailable(f"the queue of the {model} model is full; try again later")
    return TesseraError(message)

"""A small stand-in for the module that Triton's Python backend gives its models.

Has the members that `tessera.triton.pb` and `bench.baseline_model` use, with the real ones'
behaviour as far as the tests need it. `BLS` maps a model's name to the function that answers calls
to it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from tessera.shared.settings import ServerSettings
from tessera.shared.signing import ServerKey

TRITONSERVER_REQUEST_RELEASE_RESCHEDULE = 2
TRITONSERVER_RESPONSE_COMPLETE_FINAL = 1
BLS: dict[str, Callable[[dict[str, Any]], InferenceResponse]] = {}
TIMEOUTS: dict[str, int] = {}
PARAMETERS: dict[str, dict[str, Any]] = {}
"""Of the last call to each model."""


class Tensor:
    def __init__(self, name: str, array: np.ndarray[Any, Any]) -> None:
        self._name = name
        self._array = array

    def name(self) -> str:
        return self._name

    def as_numpy(self) -> np.ndarray[Any, Any]:
        return self._array

    def to_dlpack(self) -> Any:
        return np.array(self._array).__dlpack__()


class TritonError(Exception):
    UNKNOWN, INTERNAL, NOT_FOUND, INVALID_ARG, UNAVAILABLE, UNSUPPORTED, ALREADY_EXISTS = range(7)
    CANCELLED = 7

    def __init__(self, message: str, code: int = INTERNAL) -> None:
        super().__init__(message)
        self._message = message
        self._code = code

    def message(self) -> str:
        return self._message

    def code(self) -> int:
        return self._code


@dataclass
class InferenceResponse:
    output_tensors: list[Tensor] = field(default_factory=list)
    error: TritonError | None = None

    def has_error(self) -> bool:
        return self.error is not None

    def arrays(self) -> dict[str, np.ndarray[Any, Any]]:
        return {t.name(): t.as_numpy() for t in self.output_tensors}


# The real response's `error` is a method of the received and a keyword of the made one.
@dataclass
class ReceivedResponse:
    made: InferenceResponse

    def has_error(self) -> bool:
        return self.made.error is not None

    def error(self) -> TritonError | None:
        return self.made.error


class ResponseSender:
    """Of a model that is not decoupled: one response, which is final."""

    def __init__(self) -> None:
        self.sent: InferenceResponse | None = None

    def send(self, response: InferenceResponse, flags: int) -> None:
        assert self.sent is None
        assert flags == TRITONSERVER_RESPONSE_COMPLETE_FINAL
        self.sent = response


class Request:
    """An incoming request, as Triton hands it to `execute`."""

    def __init__(
        self,
        correlation_id: int = 0,
        called: bool = False,
        parameters: dict[str, Any] | None = None,
        timeout: int = 0,
        raw: bytes | None = None,
        **inputs: np.ndarray[Any, Any],
    ) -> None:
        self._parameters = (parameters or {}) | ({"tessera_called": word()} if called else {})
        self._inputs = [Tensor(name, array) for name, array in inputs.items()]
        self._correlation_id = correlation_id
        self._timeout = timeout
        self._raw = raw
        self.flags = 0
        self.sender = ResponseSender()

    def get_response_sender(self) -> ResponseSender:
        return self.sender

    def inputs(self) -> list[Tensor]:
        return self._inputs

    def parameters(self) -> str:
        if self._raw is not None:
            return self._raw.decode()  # as pybind11 does with what Triton has
        return json.dumps(self._parameters) if self._parameters else ""

    def correlation_id(self) -> int:
        return self._correlation_id

    def timeout(self) -> int:
        return self._timeout

    def set_release_flags(self, flags: int) -> None:
        self.flags = flags


class InferenceRequest:
    """An outgoing BLS request."""

    def __init__(
        self,
        model_name: str,
        inputs: list[Tensor],
        requested_output_names: list[str],
        parameters: dict[str, Any],
        timeout: int,
    ) -> None:
        assert parameters["tessera_called"] == word()
        TIMEOUTS[model_name] = timeout
        PARAMETERS[model_name] = parameters
        self._model = model_name
        self._inputs = inputs

    def exec(self) -> ReceivedResponse:
        return ReceivedResponse(BLS[self._model]({t.name(): t.as_numpy() for t in self._inputs}))


def word() -> str:
    """What models of the server say to each other."""
    return ServerKey(ServerSettings.from_environment().key).word


def get_output_tensor_by_name(response: ReceivedResponse, name: str) -> Tensor | None:
    return next((t for t in response.made.output_tensors if t.name() == name), None)


class Logger:
    lines: ClassVar[list[str]] = []

    @classmethod
    def log_warn(cls, message: str) -> None:
        message.encode()  # the backend takes UTF-8 only
        cls.lines.append(message)

    @classmethod
    def log_error(cls, message: str) -> None:
        message.encode()
        cls.lines.append(message)


@dataclass
class Metric:
    buckets: list[float]
    value: float = 0.0
    observed: list[float] = field(default_factory=list)

    def set(self, value: float) -> None:
        self.value = value

    def increment(self, value: float) -> None:
        assert value > 0
        self.value += value

    def observe(self, value: float) -> None:
        assert self.buckets
        self.observed.append(value)


METRICS: dict[str, dict[tuple[str, ...], Metric]] = {}
"""Of the server, by name and labels."""


class MetricFamily:
    COUNTER, GAUGE, HISTOGRAM = "counter", "gauge", "histogram"

    def __init__(self, name: str, description: str, kind: str) -> None:
        self._series = METRICS.setdefault(name, {})

    def Metric(  # noqa: N802 - Triton's name
        self, labels: dict[str, str], buckets: Sequence[float] = ()
    ) -> Metric:
        return self._series.setdefault(tuple(labels.values()), Metric(list(buckets)))

"""Named arrays over gRPC, by tritonclient: the only module that knows it."""

from __future__ import annotations

from typing import Any

import numpy as np

from tessera.types import Array
from tessera_client.address import Address
from tessera_client.wire import Call, ErrorAnswer, datatype_of, received

try:
    import tritonclient.grpc as triton
    import tritonclient.grpc.aio as triton_aio
    from tritonclient.utils import InferenceServerException
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"{error.name} is not installed, which grpc:// and grpcs:// need; "
        'pip install ".[client,grpc]" in a checkout of Tessera, or use http:// or https://'
    ) from None

CHANNEL = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.use_local_subchannel_pool", 1),
]


class GrpcTransport:
    """gRPC."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._headers = _metadata(address)
        self._client = triton.InferenceServerClient(**_options(address))

    def infer(self, call: Call, timeout: float) -> dict[str, Array]:
        """See `Transport.infer`."""
        try:
            answer = self._client.infer(
                **_arguments(call, timeout), headers=self._headers, client_timeout=timeout
            )
        except Exception as error:
            raise _received(error, self._address.netloc, timeout) from None
        return {name: answer.as_numpy(name) for name in call.outputs}

    def ready(self, model: str | None = None, timeout: float = 5.0) -> bool:
        """See `Transport.ready`."""
        more = {"headers": self._headers, "client_timeout": timeout}
        try:
            if model:
                return bool(self._client.is_model_ready(model, **more))
            return bool(self._client.is_server_ready(**more))
        except Exception:
            return False

    def close(self) -> None:
        """See `Transport.close`."""
        self._client.close()


class AsyncGrpcTransport:
    """GRPC for asyncio."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._headers = _metadata(address)
        self._opened: Any = None

    async def infer(self, call: Call, timeout: float) -> dict[str, Array]:
        """See `Transport.infer`."""
        try:
            answer = await self._client().infer(
                **_arguments(call, timeout), headers=self._headers, client_timeout=timeout
            )
        except Exception as error:
            raise _received(error, self._address.netloc, timeout) from None
        return {name: answer.as_numpy(name) for name in call.outputs}

    async def ready(self, model: str | None = None, timeout: float = 5.0) -> bool:
        """See `Transport.ready`."""
        more = {"headers": self._headers, "client_timeout": timeout}
        try:
            if model:
                return bool(await self._client().is_model_ready(model, **more))
            return bool(await self._client().is_server_ready(**more))
        except Exception:
            return False

    async def close(self) -> None:
        """See `Transport.close`."""
        if self._opened is not None:
            await self._opened.close()
            self._opened = None

    def _client(self) -> Any:
        """Made at first use: it must be inside the running loop."""
        if self._opened is None:
            self._opened = triton_aio.InferenceServerClient(**_options(self._address))
        return self._opened


def _options(address: Address) -> dict[str, Any]:
    """Of tritonclient's clients."""
    options: dict[str, Any] = {"url": address.netloc, "channel_args": CHANNEL}
    if address.secure:
        certificates = address.ca_file and str(address.ca_file)
        options |= {"ssl": True, "root_certificates": certificates}
    return options


def _metadata(address: Address) -> dict[str, str]:
    """Headers as gRPC takes them: their names in small letters."""
    return {name.lower(): value for name, value in address.headers.items()}


def _arguments(call: Call, timeout: float) -> dict[str, Any]:
    inputs = []
    for name, array in call.inputs.items():
        tensor = triton.InferInput(name, list(array.shape), datatype_of(array))
        tensor.set_data_from_numpy(np.ascontiguousarray(array))
        inputs.append(tensor)
    parameters = call.settings(timeout)
    return {
        "model_name": call.model,
        "inputs": inputs,
        "outputs": [triton.InferRequestedOutput(name) for name in call.outputs],
        "timeout": parameters.pop("timeout"),
        "priority": parameters.pop("priority", 0),
        "parameters": parameters,
    }


def _received(error: Exception, address: str, timeout: float) -> Exception:
    if isinstance(error, InferenceServerException):
        error = ErrorAnswer(error.message(), str(error.status()).rpartition(".")[2])
    return received(error, address, timeout)

"""Requests that our own client would not send, by Triton's own client."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import tritonclient.grpc
import tritonclient.http
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from bench.server import Server
from tessera.types import Array


def error_of(
    server: Server, protocol: str, model: str, arrays: Mapping[str, Array], **options: Any
) -> InferenceServerException:
    """The error of a request, which has to have one.

    Args:
        server: to ask, without a gateway.
        protocol: `http` or `grpc`.
        model: name of the model.
        arrays: inputs by name.
        options: further ones of `InferenceServerClient.infer`.
    """
    triton: Any = tritonclient.http if protocol == "http" else tritonclient.grpc
    port = server.http_port if protocol == "http" else server.grpc_port
    tensors = []
    for name, array in arrays.items():
        tensor = triton.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
        tensor.set_data_from_numpy(array)
        tensors.append(tensor)
    with (
        triton.InferenceServerClient(f"localhost:{port}") as client,
        pytest.raises(InferenceServerException) as caught,
    ):
        client.infer(model, tensors, **options)
    return caught.value

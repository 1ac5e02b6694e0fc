"""Requests that no client of ours sends: what Triton lets through must be answered as invalid."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
from tritonclient.utils import InferenceServerException

from bench.server import Server
from tests.samples.raw_requests import error_of

PROMPT = np.array([[b"a red circle"]], object)
IMAGE = np.full((1, 64, 64, 3), 99, np.uint8)
MASK = np.full((1, 64, 64), 255, np.uint8)
REGISTER = np.array([[b"register"]], object)
TEMPLATE = np.array([[b"0123456789abcdef"]], object)

Arrays = dict[str, Any]
BAD: dict[str, tuple[str, Arrays, dict[str, Any], list[str]]] = {
    "no MASK": ("edit", {"PROMPT": PROMPT, "IMAGE": IMAGE}, {}, ["MASK is missing; accepted:"]),
    "no MASK, many others": (
        "edit",
        {"PROMPT": PROMPT, "TEMPLATE": TEMPLATE, "STEPS": np.array([[2]], np.int32)},
        {},
        ["MASK is missing; accepted:"],
    ),
    "no PROMPT": ("edit", {"IMAGE": IMAGE, "MASK": MASK}, {}, ["PROMPT is ''; accepted:"]),
    "nothing to edit": (
        "edit",
        {"PROMPT": PROMPT, "MASK": MASK},
        {},
        ["IMAGE is missing, and so is TEMPLATE; accepted: one of the two"],
    ),
    "two to edit": (
        "edit",
        {"PROMPT": PROMPT, "MASK": MASK, "IMAGE": IMAGE, "TEMPLATE": TEMPLATE},
        {},
        ["IMAGE is given as well as TEMPLATE; accepted: one of the two"],
    ),
    "MASK of another size": (
        "edit",
        {"PROMPT": PROMPT, "IMAGE": IMAGE, "MASK": MASK[:, :32]},
        {},
        ["MASK has 64 x 32 pixels; accepted: the size of the image, 64 x 64 pixels"],
    ),
    "sides that are no multiples, and another MASK": (
        "edit",
        {"PROMPT": PROMPT, "IMAGE": np.zeros((1, 100, 64, 3), np.uint8), "MASK": MASK},
        {},
        ["MASK has 64 x 64 pixels; accepted: the size of the image, 64 x 100 pixels"],
    ),
    "three sides": (
        "edit",
        {"PROMPT": PROMPT, "IMAGE": IMAGE, "EXTEND": np.array([[8, 8, 8]], np.int32)},
        {},
        ["EXTEND"],
    ),
    "MASK of a generation": ("generate", {"PROMPT": PROMPT, "MASK": MASK}, {}, ["MASK"]),
    "IMAGE of a generation": ("generate", {"PROMPT": PROMPT, "IMAGE": IMAGE}, {}, ["IMAGE"]),
    "policy of a number": (
        "generate",
        {"PROMPT": PROMPT},
        {"lora_policy": 7},
        ["lora_policy is 7; accepted: exact, bounded"],
    ),
    "policy of a fraction": (
        "edit",
        {"PROMPT": PROMPT, "IMAGE": IMAGE, "MASK": MASK},
        {"lora_policy": 1.5},
        [],
    ),
    "policy of an edit": (
        "edit",
        {"PROMPT": PROMPT, "IMAGE": IMAGE, "MASK": MASK},
        {"lora_policy": True},
        ["lora_policy is True; accepted: exact, bounded"],
    ),
    "job of a recording": (
        "templates",
        {"ACTION": REGISTER, "IMAGE": IMAGE},
        {"job_id": True},
        ["job_id is True; accepted: 1 to 64 printable ASCII characters"],
    ),
    "ACTION left out": ("templates", {"IMAGE": IMAGE}, {}, ["ACTION is ''; accepted: register"]),
    "JOB_ID left out": ("jobs", {"ACTION": np.array([[b"status"]], object)}, {}, []),
}


@pytest.mark.parametrize("protocol", ["http", "grpc"])
@pytest.mark.parametrize(("model", "arrays", "parameters", "parts"), BAD.values(), ids=BAD.keys())
def test_it_is_answered_as_invalid(
    server: Server,
    protocol: str,
    model: str,
    arrays: Arrays,
    parameters: dict[str, Any],
    parts: list[str],
) -> None:
    error = error_of(server, protocol, model, arrays, parameters=parameters)
    assert str(error.status()) in ("400", "StatusCode.INVALID_ARGUMENT"), error.message()
    for part in parts:
        assert part in error.message()


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_an_input_that_comes_twice_is_refused(server: Server, protocol: str) -> None:
    triton: Any = tritonclient.http if protocol == "http" else tritonclient.grpc
    port = server.http_port if protocol == "http" else server.grpc_port
    tensor = triton.InferInput("PROMPT", [1, 1], "BYTES")
    tensor.set_data_from_numpy(PROMPT)
    with (
        triton.InferenceServerClient(f"localhost:{port}") as client,
        pytest.raises(InferenceServerException) as caught,
    ):
        client.infer("generate", [tensor, tensor])
    assert str(caught.value.status()) in ("400", "StatusCode.INVALID_ARGUMENT")

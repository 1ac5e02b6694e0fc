"""JSON that Triton's own parser answers with 500, as docs/user/kserve.md lists it: 400 through the
gateway.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from bench.server import Server
from tests.samples.gateways import RunningGateway
from tests.samples.raw_http import send

INFER = "/v2/models/generate/infer"
PROMPT: dict[str, Any] = {"name": "PROMPT", "datatype": "BYTES", "shape": [1, 1], "data": ["a"]}
STEPS: dict[str, Any] = {"name": "STEPS", "datatype": "INT32", "shape": [1, 1], "data": [1]}
OUTPUT: dict[str, Any] = {"name": "INFO"}


def body(**changed: Any) -> bytes:
    return json.dumps({"inputs": [PROMPT, STEPS], "outputs": [OUTPUT], **changed}).encode()


def prompt(**changed: Any) -> bytes:
    return body(inputs=[{**PROMPT, **changed}, STEPS])


CASES: dict[str, bytes] = {
    "no JSON": b"{",
    "JSON that is no object": b"[]",
    "inputs of another type": body(inputs=7),
    "an input of another type": body(inputs=[7]),
    "a name of another type": prompt(name=7),
    "a datatype of another type": prompt(datatype=7),
    "an unknown datatype": prompt(datatype="TEXT"),
    "a shape of another type": prompt(shape=7),
    "a shape of null": prompt(shape=None),
    "a shape of texts": prompt(shape=["1", "1"]),
    "a shape of fractions": prompt(shape=[1.0, 1.0]),
    "a negative shape": prompt(shape=[1, -1]),
    "data of another type": prompt(data=7),
    "data of null": prompt(data=None),
    "a number for a text": prompt(data=[7]),
    "a text for a number": body(inputs=[PROMPT, {**STEPS, "data": ["1"]}]),
    "a fraction for an integer": body(inputs=[PROMPT, {**STEPS, "data": [1.5]}]),
    "too many values": body(inputs=[PROMPT, {**STEPS, "data": [1, 2]}]),
    "too few values": body(inputs=[PROMPT, {**STEPS, "data": []}]),
    "a lone surrogate": body().replace(b'["a"]', rb'["\ud800"]'),
    "text that is not UTF-8": body().replace(b'["a"]', b'["\xff"]'),
    "an id of another type": body(id=7),
    "outputs of another type": body(outputs=7),
    "an output of another type": body(outputs=[7]),
    "an output's name of another type": body(outputs=[{"name": 7}]),
    "parameters of another type": body(parameters=[7]),
    "a parameter of null": body(parameters={"x": None}),
    "a nested parameter": body(parameters={"x": {"y": 1}}),
    "a priority that is a text": body(parameters={"priority": "high"}),
    "a negative timeout": body(parameters={"timeout": -1}),
    "a size of bytes that is a text": prompt(parameters={"binary_data_size": "9"}),
}
FOUR_HUNDRED = {
    "an input of another type",
    "an unknown datatype",
    "text that is not UTF-8",
    "a parameter of null",
    "a nested parameter",
    "a size of bytes that is a text",
}
"""Those that Triton answers as it should."""


def test_what_triton_answers_with_500(server: Server) -> None:
    statuses = {name: send(server.http, "POST", INFER, text).status for name, text in CASES.items()}
    assert statuses == {name: 400 if name in FOUR_HUNDRED else 500 for name in CASES}


@pytest.mark.parametrize("text", CASES.values(), ids=CASES.keys())
def test_the_gateway_answers_with_400(kserve: RunningGateway, text: bytes) -> None:
    answer = send(kserve.url, "POST", INFER, text)
    assert (answer.status, bool(answer.error)) == (400, True)

"""Texts on their way through the gateway: Triton gets the bytes that tritonclient makes of them,
whichever way they came.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient
from tritonclient import http
from tritonclient.utils import serialize_byte_tensor

from tessera_gateway.app import create_app
from tessera_gateway.keys import make_key
from tessera_gateway.kserve.framing import HEAD_LENGTH
from tessera_gateway.settings import GatewaySettings
from tests.fakes.transport import AsyncFakeTransport

INFER = "/v2/models/edit/infer"
TEXTS = st.lists(st.text(st.characters(codec="utf-8"), max_size=9), min_size=1, max_size=9)


class _Triton(BaseHTTPRequestHandler):
    """Keeps the heads and the bytes behind them that it gets whole."""

    protocol_version = "HTTP/1.1"
    came: list[tuple[dict[str, Any], bytes]]

    def do_POST(self) -> None:
        length = int(self.headers["Content-Length"])
        body, size = self.rfile.read(length), int(self.headers[HEAD_LENGTH])
        if len(body) < length:
            self.close_connection = True
            return
        self.came.append((json.loads(body[:size]), body[size:]))
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def came() -> list[tuple[dict[str, Any], bytes]]:
    """What Triton has got."""
    return []


@pytest.fixture(scope="module")
def passing(came: list[tuple[dict[str, Any], bytes]]) -> Iterator[TestClient]:
    """A gateway in front of it."""
    with gateway(came) as client:
        yield client


@contextmanager
def gateway(
    came: list[tuple[dict[str, Any], bytes]], keys: Path | None = None
) -> Iterator[TestClient]:
    handler = type("Handler", (_Triton,), {"came": came})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as triton:
        threading.Thread(target=triton.serve_forever, daemon=True).start()
        given = GatewaySettings(kserve=f"http://127.0.0.1:{triton.server_port}", keys=keys)
        with TestClient(create_app(given, transport=AsyncFakeTransport())) as client:
            yield client
        triton.shutdown()


def texts_of(*texts: str) -> Any:
    return np.array([[text.encode() for text in texts]], object)


def asked(arrays: dict[str, Any], *, binary: bool) -> tuple[bytes, dict[str, str]]:
    """A body as tritonclient writes it, and its headers."""
    tensors = []
    for name, array in arrays.items():
        tensor = http.InferInput(name, list(array.shape), "BYTES")
        tensor.set_data_from_numpy(array, binary_data=binary)
        tensors.append(tensor)
    body, size = http.InferenceServerClient.generate_request_body(tensors)
    return body, {} if size is None else {HEAD_LENGTH: str(size)}


@pytest.mark.parametrize("binary", [True, False], ids=["binary", "JSON"])
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=TEXTS)
def test_triton_gets_the_same_texts(
    passing: TestClient,
    came: list[tuple[dict[str, Any], bytes]],
    binary: bool,
    texts: list[str],
) -> None:
    arrays = {
        "PROMPT": texts_of("a circle"),
        "REGION_PROMPTS": texts_of(*texts),
        "JOB_ID": texts_of("mine"),
    }
    body, headers = asked(arrays, binary=binary)
    answer = passing.post(INFER, content=body, headers=headers)
    assert answer.status_code == 200, answer.text
    head, rest = came.pop()
    serialized = [serialize_byte_tensor(array).item() for array in arrays.values()]
    assert rest == b"".join(serialized)
    assert head["inputs"] == [
        {
            "name": name,
            "datatype": "BYTES",
            "shape": list(array.shape),
            "parameters": {"binary_data_size": len(data)},
        }
        for (name, array), data in zip(arrays.items(), serialized, strict=True)
    ]


BAD: dict[str, tuple[bytes, list[int], str]] = {
    "a length too large": (
        b"\1\0\0\0a\xff\xff\xff\xffb",
        [1, 2],
        "inputs[0] (REGION_PROMPTS[1]) says that its text has 4294967295 bytes; accepted: 1, as",
    ),
    "one text too many": (
        serialize_byte_tensor(texts_of("a", "b", "c")).item(),
        [1, 2],
        "inputs[0] (REGION_PROMPTS[1]) says that its text has 1 bytes; accepted: 6, as",
    ),
    "one text too few": (
        serialize_byte_tensor(texts_of("a", "bcdef")).item(),
        [1, 3],
        "inputs[0] (REGION_PROMPTS[1]) says that its text has 5 bytes; accepted: at most 1, as",
    ),
    "no UTF-8": (b"\1\0\0\0a\1\0\0\0\xff", [1, 2], "inputs[0] (REGION_PROMPTS[1]) is not UTF-8"),
    "no room for the lengths": (
        b"\0" * 7,
        [1, 2],
        "inputs[0].parameters.binary_data_size is 7; accepted: 8 to 131080 bytes",
    ),
    "too many texts": (
        b"\0" * 4 * 65,
        [1, 65],
        "inputs[0].shape is [1, 65]; accepted: [1, n], at most 64 texts",
    ),
    "a huge shape": (b"\0" * 8, [1, 2**40], "inputs[0].shape is [1, 1099511627776]"),
}


@pytest.mark.parametrize(("data", "shape", "sentence"), BAD.values(), ids=BAD.keys())
def test_bytes_that_triton_does_not_get(
    passing: TestClient,
    came: list[tuple[dict[str, Any], bytes]],
    data: bytes,
    shape: list[int],
    sentence: str,
) -> None:
    tensor = {"name": "REGION_PROMPTS", "datatype": "BYTES", "shape": shape}
    sized = {**tensor, "parameters": {"binary_data_size": len(data)}}
    head = json.dumps({"inputs": [sized]}).encode()
    answer = passing.post(INFER, content=head + data, headers={HEAD_LENGTH: str(len(head))})
    assert answer.status_code == 400
    assert sentence in answer.json()["error"]
    assert not came


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        (["a", "b"], "REGION_PROMPTS has several values, which have no shape here; accepted: "),
        ("a", "REGION_PROMPTS has several values, which have no shape here; accepted: "),
    ],
    ids=["two", "one"],
)
def test_the_generate_extension_has_no_shapes(
    passing: TestClient, value: Any, sentence: str
) -> None:
    body = json.dumps({"PROMPT": "a circle", "REGION_PROMPTS": value}).encode()
    answer = passing.post("/v2/models/edit/generate", content=body)
    assert answer.status_code == 400
    assert sentence in answer.json()["error"]


def test_the_load_is_the_operators(tmp_path: Path) -> None:
    """However the action is written."""
    came: list[tuple[dict[str, Any], bytes]] = []
    token, lines = make_key("alice")
    operator, more = make_key("operator")
    (tmp_path / "keys.toml").write_text(f"{lines}{more}operator = true\n")
    with gateway(came, tmp_path / "keys.toml") as client:

        def ask(token: str, action: str, **form: Any) -> Any:
            body, headers = asked({"ACTION": texts_of(action)}, **form)
            headers["Authorization"] = f"Bearer {token}"
            return client.post("/v2/models/jobs/infer", content=body, headers=headers)

        for binary in (True, False):
            refused = ask(token, "load", binary=binary)
            assert refused.status_code == 403, refused.text
            assert "accepted: status, cancel, preview with key alice" in refused.json()["error"]
            assert ask(token, "status", binary=binary).status_code == 200
            assert ask(operator, "load", binary=binary).status_code == 200
        key = {"Authorization": f"Bearer {token}"}
        flat = client.post("/v2/models/jobs/generate", json={"ACTION": "load"}, headers=key)
        assert flat.status_code == 403, flat.text
    assert len(came) == 4

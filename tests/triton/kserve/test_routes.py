"""Every route of Triton's HTTP API, as NVIDIA's protocol documents list them: what is internal is
not reachable, with a key or without.
"""

from __future__ import annotations

import itertools
import json

import pytest

from bench.server import ALL_MODELS, Server
from tessera.contract import MODELS
from tests.samples.gateways import Guarded, RunningGateway
from tests.samples.raw_http import send

ON_DEMAND = "controlnet_edges"
INTERNAL = (*sorted(set(ALL_MODELS) - set(MODELS)), ON_DEMAND)
OF_MODELS = ("", "/ready", "/config", "/stats", "/infer", "/generate", "/generate_stream")
REGIONS = ("systemsharedmemory", "cudasharedmemory")
CLOSED = [
    *(f"/v2/models/{m}{a}" for m, a in itertools.product(INTERNAL, OF_MODELS)),
    *(f"/v2/models/{m}/versions/1{a}" for m, a in itertools.product(INTERNAL, OF_MODELS)),
    *(f"/v2/models/{m}/trace/setting" for m in (*INTERNAL, *MODELS)),
    *(f"/v2/models/{m}/generate_stream" for m in MODELS),
    *(f"/v2/models/{m}/versions/1/trace/setting" for m in MODELS),
    "/v2/models/stats",
    "/v2/trace/setting",
    "/v2/logging",
    *(f"/v2/{kind}/status" for kind in REGIONS),
    *(f"/v2/{kind}/unregister" for kind in REGIONS),
    *(f"/v2/{kind}/region/x/{a}" for kind in REGIONS for a in ("status", "register", "unregister")),
    "/v2/repository/index",
    *(f"/v2/repository/models/{m}/{a}" for m in ALL_MODELS for a in ("load", "unload")),
    *(f"/v2/repository/x/models/{m}/{a}" for m in ALL_MODELS for a in ("load", "unload")),
    "/metrics",
]
METHODS = ("GET", "POST", "PUT", "DELETE", "HEAD", "PATCH")
DISGUISES = [
    "/v2/models/generate/../encode/infer",
    "/v2/models/generate/%2e%2e/encode/infer",
    "/v2/models/generate%2f..%2fencode/infer",
    "/v2/models//encode/infer",
    "//v2/models/encode/infer",
    "/v2/./models/encode/infer",
    "/v2/models/encode/infer?model=generate",
    "/v2/models/ENCODE/infer",
    "/v2/models/encode%00/infer",
    "/v2/models/generate;/../encode/infer",
    "/V2/models/encode/infer",
    "http://localhost/v2/models/encode/infer",
]


def test_they_are_routes_of_triton(server: Server) -> None:
    """The list is that of the server. Asked directly, it knows all but these: a ControlNet that is
    not loaded has no routes yet, metrics have a port of their own, there is no region x, this
    server was built without CUDA, and only later ones have traces of versions.
    """
    unknown = [p for p in CLOSED if send(server.http, "GET", p).status == 404]
    absent = (ON_DEMAND, "/region/x/status", "cudasharedmemory", "/versions/1/trace/setting")
    assert [p for p in unknown if not any(part in p for part in absent)] == ["/metrics"]


@pytest.mark.parametrize("path", CLOSED + DISGUISES)
def test_none_is_reachable(kserve: RunningGateway, guarded: Guarded, path: str) -> None:
    key = {"Authorization": f"Bearer {guarded.token}"}
    for url, headers in ((kserve.url, {}), (guarded.gateway.url, {}), (guarded.gateway.url, key)):
        for method in METHODS:
            answer = send(url, method, path, b"{}" if method == "POST" else None, headers)
            assert answer.status in (404, 405), (method, answer)
            assert b"encode" not in answer.body


@pytest.mark.parametrize(
    "path", ["/v2", *(f"/v2/models/{m}{a}" for m in MODELS for a in OF_MODELS[:4])]
)
def test_what_is_public_needs_a_key(guarded: Guarded, path: str) -> None:
    key = {"Authorization": f"Bearer {guarded.token}"}
    assert send(guarded.gateway.url, "GET", path, None, key).status == 200
    refused = send(guarded.gateway.url, "GET", path)
    assert refused.status == 401
    assert "Authorization" in refused.error


@pytest.mark.parametrize("path", ["/v2/health/live", "/v2/health/ready"])
def test_probes_need_none(guarded: Guarded, path: str) -> None:
    assert send(guarded.gateway.url, "GET", path).status == 200


def test_nothing_tells_of_the_members_of_an_ensemble(kserve: RunningGateway) -> None:
    for model, action in itertools.product(MODELS, OF_MODELS[:4]):
        body = send(kserve.url, "GET", f"/v2/models/{model}{action}").body
        assert b"encode" not in body
        assert b"denoise" not in body


@pytest.mark.parametrize("action", ["list", "evict", "picture"])
def test_templates_are_the_operators(guarded: Guarded, action: str) -> None:
    """However the action is written."""
    tensors = {"ACTION": action, "TEMPLATE": "0123456789abcdef"}
    inputs = [
        {"name": name, "datatype": "BYTES", "shape": [1, 1], "data": [value]}
        for name, value in tensors.items()
    ]
    data = {n: len(v).to_bytes(4, "little") + v.encode() for n, v in tensors.items()}
    sizes = [
        {**{k: v for k, v in each.items() if k != "data"}, "parameters": {"binary_data_size": n}}
        for each, n in zip(inputs, map(len, data.values()), strict=True)
    ]
    head = json.dumps({"inputs": sizes}).encode()
    binary = {"Inference-Header-Content-Length": str(len(head))}
    requests: list[tuple[str, bytes, dict[str, str]]] = [
        ("infer", json.dumps({"inputs": inputs}).encode(), {}),
        ("infer", head + b"".join(data.values()), binary),
        ("generate", json.dumps(tensors).encode(), {}),
    ]
    known = 200 if action == "list" else 400
    for token, status in ((guarded.token, 403), (guarded.operator, known)):
        for route, body, headers in requests:
            key = {"Authorization": f"Bearer {token}"}
            path = f"/v2/models/templates/{route}"
            answer = send(guarded.gateway.url, "POST", path, body, headers | key)
            assert answer.status == status, answer.body
            if status == 403:
                assert answer.error.endswith("and every ACTION with an operator's key")


def test_whoever_has_a_key_registers_templates(guarded: Guarded) -> None:
    body = json.dumps({"ACTION": "register"}).encode()
    key = {"Authorization": f"Bearer {guarded.token}"}
    answer = send(guarded.gateway.url, "POST", "/v2/models/templates/generate", body, key)
    assert (answer.status, "IMAGE is missing" in answer.error) == (400, True)

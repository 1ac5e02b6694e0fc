"""What follows from an operator's choices."""

from __future__ import annotations

import pytest

from tessera_gateway.settings import GatewaySettings


@pytest.mark.parametrize(
    ("triton", "kserve", "http"),
    [
        ("grpc://localhost:8001", "", "http://localhost:8000"),
        ("grpc://worker:9001", "", "http://worker:8000"),
        ("grpc://[::1]:8001", "", "http://[::1]:8000"),
        ("http://worker:9000", "", "http://worker:9000"),
        ("grpc://worker:9001", "http://worker:9000", "http://worker:9000"),
    ],
)
def test_tritons_http_endpoint(triton: str, kserve: str, http: str) -> None:
    assert GatewaySettings(triton=triton, kserve=kserve).triton_http == http

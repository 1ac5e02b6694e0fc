"""Whatever comes to `/sdapi/v1`, the answer is as its OpenAPI description says; never a 500."""

from __future__ import annotations

import json
from typing import Any

import schemathesis
from hypothesis import HealthCheck, settings

from tessera_gateway.app import create_app
from tessera_gateway.settings import GatewaySettings
from tests.fakes.transport import AsyncFakeTransport

app = create_app(GatewaySettings(), transport=AsyncFakeTransport())
schema = schemathesis.openapi.from_asgi("/openapi.json", app).include(path_regex="^/sdapi/")


@schema.parametrize()
@settings(max_examples=25, suppress_health_check=list(HealthCheck))
def test_answers(case: Any) -> None:
    answer = case.call()
    assert answer.status_code < 500 or answer.status_code == 503, answer.text
    if answer.status_code >= 400 and answer.status_code != 405:  # no route, so no API, is known
        assert isinstance(json.loads(answer.content).get("detail"), str), answer.text

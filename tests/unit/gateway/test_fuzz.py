"""Requests that schemathesis makes of the OpenAPI description: no error of the server, and no
answer that the description does not have.

docs/internals/measurements.md has how to do the same for longer, against a real server.
"""

from __future__ import annotations

from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis import Case
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tessera_gateway.app import create_app
from tessera_gateway.settings import GatewaySettings
from tests.fakes import transport
from tests.fakes.transport import AsyncFakeTransport

CALLS = 25
"""Of each operation, beside those that the description alone leads to."""
CHECKS = [content_type_conformance, response_schema_conformance, status_code_conformance]
schema = schemathesis.openapi.from_asgi(
    "/openapi.json", create_app(GatewaySettings(), transport=AsyncFakeTransport())
)


@pytest.fixture(autouse=True)
def jobs_have_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a job's events would never end."""
    monkeypatch.setitem(transport.STATUS, "phase", "done")


@schema.parametrize()
@settings(
    max_examples=CALLS,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_no_request_is_an_error_of_the_server(case: Case[Any]) -> None:
    answer = case.call_and_validate(checks=CHECKS)
    assert answer.status_code < 500 or answer.status_code == 503

"""What docs say of the gateway: its routes, and the example of a key."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tessera_gateway.app import create_app
from tessera_gateway.keys import KeysError, read_keys
from tessera_gateway.settings import GatewaySettings
from tests.fakes.transport import AsyncFakeTransport

DOCS = Path(__file__).resolve().parents[3] / "docs"


def test_the_page_has_every_route() -> None:
    app = create_app(GatewaySettings(), transport=AsyncFakeTransport())
    routes = {
        f"{method.upper()} {path}"
        for path, methods in app.openapi()["paths"].items()
        for method in methods
        if not path.startswith("/sdapi/")
    }
    assert "GET /v1/jobs/{job_id}" in routes
    table = (DOCS / "user" / "gateway.md").read_text().partition("\n## Routes\n")[2]
    named = set(re.findall(r"`((?:GET|POST|DELETE) [^`]+)`", table.partition("\n## ")[0]))
    assert routes <= named


def test_the_example_of_a_key_lets_nobody_in_until_it_has_a_hash(tmp_path: Path) -> None:
    text = (DOCS / "operations.md").read_text().partition("\n### Keys\n")[2]
    (example,) = re.findall(r"^```toml\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    file = tmp_path / "keys.toml"
    file.write_text(example)
    with pytest.raises(KeysError, match="sha256: String should match"):
        read_keys(file)
    file.write_text(re.sub(r'(sha256 = )".*"', rf'\1"{"0f" * 32}"', example))
    (key,) = read_keys(file)
    assert (key.name, key.in_flight, key.per_minute, key.priority) == ("alice", 8, 60, 1)

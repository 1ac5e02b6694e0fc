"""What a page learns of the server."""

from __future__ import annotations

from pathlib import Path

from starlette.testclient import TestClient

from tessera import contract
from tessera_gateway.app import create_app
from tessera_gateway.keys import make_key
from tessera_gateway.settings import GatewaySettings
from tests.fakes.transport import BUNDLE, AsyncFakeTransport


def app_of(settings: GatewaySettings) -> TestClient:
    return TestClient(create_app(settings, transport=AsyncFakeTransport()))


def test_it_has_what_a_form_needs() -> None:
    with app_of(GatewaySettings()) as web:
        answer = web.get("/v1/capabilities").json()
    assert set(answer["defaults"]) >= {"steps", "guidance", "width", "height", "scheduler"}
    assert {lora["name"]: lora["problem"] for lora in answer["loras"]} == {
        "ink": None,
        "torn": "is damaged or ends early",
    }
    assert [s["name"] for s in answer["schedulers"]] == list(BUNDLE["schedulers"])
    assert "edm_euler" not in BUNDLE["schedulers"]
    assert answer["jobs"] == {"slots": 8, "running": 1, "waiting": 2}
    assert answer["preprocessors"] == list(contract.PREPROCESSORS)
    limits = answer["limits"]
    assert limits["min_size"] < limits["max_size"]
    assert (limits["size_step"], limits["prompt"]) == (contract.SIZE_STEP, contract.MAX_PROMPT)


def test_it_needs_a_key_where_there_are_keys(tmp_path: Path) -> None:
    key, line = make_key("page")
    (tmp_path / "keys").write_text(line)
    with app_of(GatewaySettings(keys=tmp_path / "keys")) as web:
        assert web.get("/v1/capabilities").status_code == 401
        headers = {"Authorization": f"Bearer {key}"}
        assert web.get("/v1/capabilities", headers=headers).status_code == 200
        assert web.get("/").status_code == 200, "the page asks for the key"

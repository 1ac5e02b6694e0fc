"""The playground's files: all there, from here only, and under a strict policy."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from starlette.testclient import TestClient

from tessera_gateway.app import create_app
from tessera_gateway.page.routes import FILES, INDEX, STATIC
from tessera_gateway.settings import GatewaySettings
from tests.fakes.transport import AsyncFakeTransport

SCRIPTS = sorted(name for name in FILES if name.endswith(".js"))
LONGEST = 250


@pytest.fixture(scope="module")
def web() -> Iterator[TestClient]:
    app = create_app(GatewaySettings(), transport=AsyncFakeTransport())
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


def test_the_page_may_load_and_reach_this_server_only(web: TestClient) -> None:
    answer = web.get("/")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    policy = dict(
        part.split(" ", 1) for part in answer.headers["content-security-policy"].split("; ")
    )
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert "unsafe" not in answer.headers["content-security-policy"]
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_everything_that_the_page_names_is_there(web: TestClient) -> None:
    names = set(re.findall(r'(?:href|src)="page/([^"]+)"', FILES[INDEX].read_text()))
    for script in SCRIPTS:
        names |= set(re.findall(r'from "\./([^"]+)"', FILES[script].read_text()))
    assert names == set(FILES) - {INDEX}, "no file is missing, and none is left over"
    for name in sorted(names):
        answer = web.get(f"/page/{name}")
        assert answer.status_code == 200
        assert answer.headers["content-type"].split(";")[0] in (
            "text/javascript",
            "text/css",
            "image/svg+xml",
        )
        assert "content-security-policy" in answer.headers


@pytest.mark.parametrize("name", ["nothing.js", "..%2Froutes.py", "%2e%2e/routes.py"])
def test_other_files_are_not_served(web: TestClient, name: str) -> None:
    assert web.get(f"/page/{name}").status_code == 404


@pytest.mark.parametrize("name", FILES)
def test_nothing_comes_from_elsewhere(name: str) -> None:
    text = FILES[name].read_text().replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"https?://|@import|\beval\(|innerHTML", text)
    assert len(text.splitlines()) <= LONGEST


def test_no_file_of_the_folder_is_forgotten() -> None:
    assert {path.name for path in STATIC.iterdir()} == set(FILES)

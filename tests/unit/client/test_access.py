"""TLS, headers, tokens and path prefixes: the clients in front of a gateway with keys."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import trustme
import uvicorn
from typer.testing import CliRunner

from tessera.errors import InvalidInput, Unavailable
from tessera_client import AsyncClient, Client, cli
from tessera_client.address import address_of
from tessera_gateway.app import create_app
from tessera_gateway.keys import make_key
from tessera_gateway.settings import GatewaySettings
from tests.fakes.transport import STATUS

PREFIX = "/pictures/a"


class Triton(BaseHTTPRequestHandler):
    """Knows one job."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._send(b"")

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        tensor = {"name": "RESULT", "datatype": "BYTES", "shape": [1, 1]}
        outputs = [tensor | {"data": [json.dumps(STATUS)]}]
        self._send(json.dumps({"model_name": "jobs", "outputs": outputs}).encode())

    def _send(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


class Running:
    """A gateway behind TLS and a path prefix, as a proxy has it; a token, and whom to trust."""

    def __init__(self, url: str, token: str, ca_file: Path) -> None:
        self.url, self.token, self.ca_file = url, token, ca_file


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("tls")
    token, lines = make_key("me")
    (folder / "keys").write_text(lines)
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(
        str(folder / "server.pem")
    )
    with ThreadingHTTPServer(("127.0.0.1", 0), Triton) as triton:
        triton.daemon_threads = True
        threading.Thread(target=triton.serve_forever, daemon=True).start()
        settings = GatewaySettings(
            triton=f"http://127.0.0.1:{triton.server_port}", keys=folder / "keys"
        )
        app = create_app(settings)

        async def behind(scope: Any, receive: Any, send: Any) -> None:
            if "path" in scope:
                assert scope["path"].startswith(PREFIX)
                scope = scope | {"path": scope["path"].removeprefix(PREFIX)}
            await app(scope, receive, send)

        config = uvicorn.Config(
            behind, host="localhost", port=0, ssl_certfile=folder / "server.pem", log_config=None
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        while not server.started and thread.is_alive():
            time.sleep(0.02)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield Running(f"https://localhost:{port}{PREFIX}", token, folder / "ca.pem")
        server.should_exit = True
        thread.join(30)
        triton.shutdown()


def test_both_clients_and_the_command_reach_it(
    gateway: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    trusted: dict[str, Any] = {"token": gateway.token, "ca_file": gateway.ca_file}
    with Client(gateway.url, **trusted) as client:
        assert client.status("j").total == 2
        assert client.status("j").total == 2, "on the connection that is open already"
        assert client.health().server

    async def talk() -> int:
        headers = {"Authorization": f"Bearer {gateway.token}"}
        async with AsyncClient(gateway.url, headers=headers, ca_file=gateway.ca_file) as opened:
            assert (await opened.health()).server
            return (await opened.status("j")).total

    assert asyncio.run(talk()) == 2
    monkeypatch.setenv("TESSERA_TOKEN", gateway.token)
    options = ["--ca-file", str(gateway.ca_file), "--header", "X-Mine: 1"]
    done = CliRunner().invoke(cli.app, [*options, "jobs", "j", "--url", gateway.url])
    assert "j: denoising, step 1 of 2" in done.output


def test_without_the_token_or_trust(gateway: Running) -> None:
    with (
        Client(gateway.url, token="", ca_file=gateway.ca_file) as client,
        pytest.raises(InvalidInput, match="Authorization has no known key"),
    ):
        client.status("j")
    with (
        Client(gateway.url, token=gateway.token) as client,
        pytest.raises(Unavailable, match="does not prove that it is the server"),
    ):
        client.status("j")

    async def talk() -> None:
        async with AsyncClient(gateway.url, token=gateway.token) as opened:
            await opened.status("j")

    with pytest.raises(Unavailable, match="does not prove that it is the server"):
        asyncio.run(talk())


def test_addresses_keep_secrets(tmp_path: Path) -> None:
    address = address_of("https://host", token="secret", headers={"X-Mine": "other"})
    assert address.headers == {"X-Mine": "other", "Authorization": "Bearer secret"}
    assert "secret" not in repr(address)
    assert "other" not in repr(address)
    (tmp_path / "ca.pem").write_text("no certificate")
    with pytest.raises(ValueError, match="accepted: a PEM file"):
        address_of("https://host", ca_file=tmp_path / "ca.pem")
    with pytest.raises(ValueError, match="ca_file is for https:// and grpcs://"):
        address_of("http://host", ca_file=tmp_path / "ca.pem")
    with pytest.raises(ValueError, match="cannot be sent; accepted: a str of one line"):
        address_of("http://host", headers={"A": "b\r\nc: d"})
    with pytest.raises(InvalidInput, match="url has a user name"):
        address_of("https://me:secret@host")

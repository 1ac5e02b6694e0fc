"""`tessera-serve --gateway`: both are started, looked after and ended together."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path
from typing import Any

import psutil

from bench.server import Server, free_ports, serving
from tests.samples.servers import ended_whole, family_of
from tests.samples.waiting import PATIENCE_S, comes


def ask(port: int, path: str) -> Any:
    """An answer of the gateway; `None` if there is none."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=PATIENCE_S) as answer:
            return json.loads(answer.read())
    except OSError:
        return None


def wait_for_gateway(port: int) -> None:
    comes(lambda: ask(port, "/v1/models"))


def gateway_of(server: Server) -> psutil.Process:
    children = psutil.Process(server.process.pid).children()
    (found,) = [child for child in children if "tessera_gateway" in " ".join(child.cmdline())]
    return found


def test_a_gateway_is_started_looked_after_and_ended(bundle: Path, tmp_path: Path) -> None:
    (port,) = free_ports(1)
    flags = ("--gateway", f"--gateway-port={port}")
    with ended_whole(bundle, tmp_path / "log", *flags) as server:
        wait_for_gateway(port)
        first = gateway_of(server)
        first.kill()
        first.wait(PATIENCE_S)
        server.wait_until(lambda: "the gateway has ended" in server.log.read_text(), PATIENCE_S)
        wait_for_gateway(port)
        second = gateway_of(server)
        assert second.pid != first.pid
        assert ask(port, "/v2/models/generate")["name"] == "generate"
        body = json.dumps({"prompt": "a red circle", "tessera": {"steps": 2}}).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/v1/images/generations",
            body,
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:
            assert json.loads(answer.read())["data"][0]["b64_json"]
    assert not second.is_running()
    assert ask(port, "/v1/models") is None


def test_killed_outright_it_leaves_its_ports_to_the_next(bundle: Path, tmp_path: Path) -> None:
    (port,) = free_ports(1)
    flags = ("--gateway", f"--gateway-port={port}")
    with serving(bundle, tmp_path / "log", *flags) as server:
        wait_for_gateway(port)
        family = family_of(server)
        assert gateway_of(server) in family
        server.process.kill()
        server.process.wait(PATIENCE_S)
        _, alive = psutil.wait_procs(family, timeout=PATIENCE_S)
        assert not alive
    ports = {
        "http": server.http_port,
        "grpc": server.grpc_port,
        "metrics": server.metrics_port,
    }
    again = [*flags, *(f"--{name}-port={number}" for name, number in ports.items())]
    with serving(bundle, tmp_path / "again", *again):
        wait_for_gateway(port)
        assert ask(server.http_port, "/v2")["name"] == "triton"

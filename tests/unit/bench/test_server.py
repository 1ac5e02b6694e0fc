"""Ports for servers of benchmarks and tests."""

from __future__ import annotations

import socket

import pytest

from bench import server as module
from bench.server import free_ports


def test_ports_differ() -> None:
    assert len(set(free_ports(20))) == 20


def test_a_port_that_is_taken_is_not_free(monkeypatch: pytest.MonkeyPatch) -> None:
    (port,) = free_ports(1)
    monkeypatch.setattr(module, "_PORTS", range(port, port + 1))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        with pytest.raises(RuntimeError, match="1 free ports were asked for; there are 0"):
            free_ports(1)
    assert free_ports(1) == [port]

"""A fleet whose workers Ray Serve starts, and starts again."""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np
import psutil
import pytest

from bench.server import Server
from tessera_client import Client, Result
from tests.samples.fleets import RunningFleet, fleet_of
from tests.samples.waiting import PATIENCE_S, comes

pytest.importorskip("ray", reason="Ray is not installed: pip install '.[ray]'")


def family(fleet: RunningFleet, name: str) -> list[psutil.Process]:
    """Processes of a program among all that the fleet has started. The actors' are not its
    children.
    """
    return [
        process
        for process in psutil.process_iter(["cmdline"])
        if any(part.endswith(name) for part in process.info["cmdline"] or ())
        and str(fleet.log.parent) in " ".join(process.info["cmdline"])
    ]


@pytest.mark.timeout(1200)
def test_a_fleet_from_its_start_to_its_end(bundle: Path, server: Server, tmp_path: Path) -> None:
    settings = {
        "bundle": str(bundle),
        "replicas": 2,
        "cpus": 0.5,
        "serve": ["--threads", "1"],
        "templates": str(tmp_path / "templates"),
    }
    with fleet_of(tmp_path, 2, **settings) as fleet:
        for worker in fleet.about()["workers"]:
            assert worker["address"].startswith("127.0.0.1:")
        _only_ray_faces_the_network(fleet)
        _answers_are_equal(fleet)
        with asking(fleet) as counts:
            for title in ("ray::Addresses", "ray::ServeController"):
                _without(title, fleet, counts)
            _dies_and_comes_back(fleet, counts)
        comes(lambda: len(family(fleet, "tessera-serve")) == 2)  # the killed one's may be ending
        served = family(fleet, "tessera-serve")
    _, alive = psutil.wait_procs(served, timeout=PATIENCE_S)
    assert not alive


def _only_ray_faces_the_network(fleet: RunningFleet) -> None:
    """And asks for its token there."""
    served = family(fleet, "tessera-serve")
    servers = [*served, *(child for each in served for child in each.children(recursive=True))]
    found = {address for each in servers for address in listened(each)}
    assert len(found) >= 2 * len(served)
    assert {ip for ip, _ in found} == {"127.0.0.1"}
    ours = psutil.Process(fleet.process.pid)
    every = [ours, *ours.children(recursive=True)]
    ports = {fleet.http_port, fleet.grpc_port}
    fronts = {(ip, port) for each in every for ip, port in listened(each) if port in ports}
    assert fronts == {("127.0.0.1", port) for port in ports}
    (gcs,) = (each for each in every if each.name() == "gcs_server")
    ((_, port),) = listened(gcs)
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        ask = channel.unary_unary("/ray.rpc.NodeInfoGcsService/GetAllNodeInfo")
        with pytest.raises(grpc.RpcError) as caught:
            ask(b"", timeout=60)
    assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED


def listened(process: psutil.Process) -> set[tuple[str, int]]:
    """Where it listens; nowhere, if it has ended meanwhile."""
    with contextlib.suppress(psutil.NoSuchProcess):
        sockets = process.net_connections("inet")
        return {
            (each.laddr.ip.removeprefix("::ffff:"), each.laddr.port)  # IPv4 in a socket of IPv6
            for each in sockets
            if each.status == psutil.CONN_LISTEN
        }
    return set()


def _answers_are_equal(fleet: RunningFleet) -> None:
    """Of both workers, over both protocols: more than one worker denoises at a time."""
    pictures: list[Result] = []
    with fleet.clients() as (http, grpc), ThreadPoolExecutor(20) as pool:

        def draw(client: Client) -> Result:
            return client.generate("a red circle", steps=8, seed=3)

        def both_have_drawn() -> bool:
            pictures.extend(pool.map(draw, (http, grpc) * 10))
            return len({picture.info.worker for picture in pictures}) == 2

        comes(both_have_drawn, 240)
    first = np.asarray(pictures[0].image)
    for picture in pictures:
        np.testing.assert_array_equal(np.asarray(picture.image), first)


@contextlib.contextmanager
def asking(fleet: RunningFleet) -> Iterator[Counter[str]]:
    """Three clients that ask on and on; what becomes of their requests."""
    counts: Counter[str] = Counter()
    until = threading.Event()

    def draw(index: int) -> None:
        with fleet.clients() as clients:
            while not until.is_set():
                try:
                    clients[index % 2].generate("a circle", steps=4)
                    counts["drawn"] += 1
                except Exception as error:
                    counts[type(error).__name__] += 1

    threads = [threading.Thread(target=draw, args=(index,)) for index in range(3)]
    for thread in threads:
        thread.start()
    try:
        yield counts
    finally:
        until.set()
        for thread in threads:
            thread.join()


def _without(title: str, fleet: RunningFleet, counts: Counter[str]) -> None:
    """An actor that no request needs is killed. Ray starts another one, which knows nothing at
    first.
    """
    (raylet,) = (p for p in family(fleet, "tessera-serve")[0].parents() if p.name() == "raylet")

    def actors() -> set[psutil.Process]:
        return {each for each in raylet.children() if title in " ".join(command(each))}

    killed = actors()
    for actor in killed:
        actor.kill()
    assert len(psutil.wait_procs(killed, timeout=300)[0]) == 1
    comes(lambda: bool(actors() - killed))
    drawn = counts["drawn"]
    comes(lambda: counts["drawn"] >= drawn + 3)
    assert set(counts) == {"drawn"}
    fleet.wait(2)


def command(process: psutil.Process) -> list[str]:
    """Its words; none, if it has ended meanwhile."""
    with contextlib.suppress(psutil.NoSuchProcess):
        words: list[str] = process.cmdline()
        return words
    return []


def _dies_and_comes_back(fleet: RunningFleet, counts: Counter[str]) -> None:
    """A worker is killed under load. What had not begun there is lost nowhere."""
    children = family(fleet, "tessera-serve")[0].children(recursive=True)
    next(child for child in children if child.name() == "tritonserver").kill()
    comes(lambda: fleet.live() == 1)
    fleet.wait(2)
    drawn = counts["drawn"]
    comes(lambda: counts["drawn"] > drawn)
    assert sum(n for name, n in counts.items() if name != "drawn") <= 3, counts

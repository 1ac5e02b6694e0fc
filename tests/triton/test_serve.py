"""tessera-serve as a process: starting, refusing, stopping; and plain tritonserver without it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import tritonclient.grpc as grpc
import tritonclient.http as http
from tritonclient.utils import InferenceServerException

from bench.server import free_ports, plain_serving, serving
from tessera.manifest import SCHEMA
from tessera.serve.run_folder import run_folder
from tessera.serve.tritonserver import Ports, command, environment, find_server, model_repository
from tessera.shared.board import sweep_boards
from tessera.shared.processes import model_processes
from tessera_client import Client, Control
from tests.samples.images import noise_blocks
from tests.samples.servers import family_of, shared_memory_of

SERVE = str(Path(sys.executable).parent / "tessera-serve")


def refused(*arguments: str) -> str:
    done = subprocess.run([SERVE, *arguments], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    return done.stderr


def test_a_bundle_with_a_changed_file_is_refused(bundle: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(bundle, tmp_path / "copy")
    graph = copy / "graphs" / "text_encoder.onnx"
    content = bytearray(graph.read_bytes())
    content[1000] ^= 1
    graph.write_bytes(content)
    assert "SHA-256 differs); build the bundle again" in refused(str(copy))


def test_a_bundle_of_another_schema_is_refused(bundle: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(bundle, tmp_path / "copy")
    content = json.loads((copy / "bundle.json").read_text())
    (copy / "bundle.json").write_text(json.dumps(content | {"schema": 0}))
    assert f"has schema 0, this Tessera reads {SCHEMA}" in refused(str(copy))


def test_a_folder_that_is_no_bundle_is_refused(tmp_path: Path) -> None:
    assert "is not a bundle: it has no bundle.json" in refused(str(tmp_path))


def test_a_port_in_use_is_named(bundle: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert f"--http-port {port} cannot be used" in refused(
            str(bundle), f"--http-port={port}", "--grpc-port=0", "--metrics-port=0"
        )


def test_killed_outright_it_leaves_no_process_and_its_memory_to_the_next(
    bundle: Path, tmp_path: Path
) -> None:
    with serving(bundle, tmp_path / "log", "--threads=1") as server:
        family = family_of(server)
        kept = shared_memory_of(server)
        assert len([path for path in kept if path.is_file()]) > 10, "the regions of the models"
        server.process.kill()
        _, alive = psutil.wait_procs(family, timeout=60)
    assert not alive
    with run_folder():
        assert not [path for path in kept if path.exists()]


def test_a_plain_tritonserver_serves_a_bundle_and_the_models_written_for_its_controlnets(
    bundle: Path, tmp_path: Path
) -> None:
    """Those are in a repository of their own; all others need nothing but the bundle."""
    written = tmp_path / "models"
    subprocess.run([SERVE, str(bundle), f"--write-models={written}"], check=True)
    with plain_serving(
        [model_repository(), written], tmp_path / "log", TESSERA_BUNDLE=str(bundle)
    ) as server:
        with Client(server.http) as client:
            assert client.generate("a red circle", steps=2, job_id="plain").info.ticks == 2
            assert client.status("plain").phase == "done"
            controls = [Control(name, noise_blocks(1), end=0.6) for name in ("edges", "silhouette")]
            guided = client.generate("a", seed=1, steps=4, controls=controls)
            assert guided.info.control_ticks == 2
        kept = list(Path("/dev/shm").glob(f"tessera-board-*-{server.process.pid}-*"))
        assert {"", ".activity", ".costs"} <= {path.suffix for path in kept}
    sweep_boards()
    assert not [path for path in kept if path.exists()]


def test_without_a_bundle_the_log_says_what_to_set(tmp_path: Path) -> None:
    found = find_server(tmp_path)
    http, grpc, metrics = free_ports(3)
    line = command(found, [model_repository()], Ports(http, grpc, metrics), load=["encode"])
    variables = {k: v for k, v in environment(found).items() if k != "TESSERA_BUNDLE"}
    with (tmp_path / "log").open("wb") as log:
        ended = subprocess.run(line, env=variables, stdout=log, stderr=log, timeout=300)
    assert ended.returncode != 0
    assert "TESSERA_BUNDLE is not set; set it to the folder of a bundle" in (
        tmp_path / "log"
    ).read_text(errors="replace")


def test_threads_and_address_reach_the_server_and_an_interrupt_ends_it(
    bundle: Path, tmp_path: Path
) -> None:
    """Only `tessera-serve` may load and unload models: a model may be any code."""
    log = tmp_path / "log"
    with serving(bundle, log, "--threads=1", "--host=127.0.0.2") as server:
        (triton,) = psutil.Process(server.process.pid).children()
        assert triton.environ()["TESSERA_THREADS"] == "1"
        assert not server.ready(), "it listens at other addresses, too"
        for protocol, port in ((http, server.http_port), (grpc, server.grpc_port)):
            with contextlib.closing(protocol.InferenceServerClient(f"127.0.0.2:{port}")) as client:
                for change in (client.unload_model, client.load_model):
                    with pytest.raises(InferenceServerException, match="restricted"):
                        change("jobs")
                assert client.is_model_ready("jobs")
        victim = next(p for p, m in model_processes(triton.pid).items() if m == "jobs")
        os.kill(victim, signal.SIGKILL)
        end = time.monotonic() + 30
        while "model jobs is back after" not in log.read_text() and time.monotonic() < end:
            time.sleep(0.05)
        with Client(f"http://127.0.0.2:{server.http_port}") as client:
            assert client.generate("a", steps=1, job_id="after").info.ticks == 1
            assert client.status("after").phase == "done"
        family = family_of(server)
        assert len(family) > 10
        assert shared_memory_of(server)
        server.process.send_signal(signal.SIGINT)  # for SIGTERM see `ended_whole`
        assert server.process.wait(150) == 0
        _, alive = psutil.wait_procs(family, timeout=60)
    assert not alive
    assert not shared_memory_of(server)
    assert os.environ.get("TESSERA_THREADS") is None

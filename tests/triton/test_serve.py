"""tessera-serve as a process: starting, refusing, stopping; and plain tritonserver without it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import tritonclient.grpc as grpc
import tritonclient.http as http
from tritonclient.utils import InferenceServerException

from bench.server import Server, free_ports, plain_serving, serving
from tessera.contract.limits import CPU_SLOTS
from tessera.errors import TesseraError
from tessera.manifest import SCHEMA, read_manifest
from tessera.serve.run_folder import run_folder
from tessera.serve.tritonserver import Ports, command, environment, find_server, model_repository
from tessera.shared.processes import model_processes
from tessera.shared.sweep import sweep_boards
from tessera_client import Cancelled, Client, Control
from tests.samples.images import noise_blocks, ramp
from tests.samples.jobs import in_company, wait_for_step
from tests.samples.servers import family_of, shared_memory_of
from tests.samples.waiting import PATIENCE_S, again_until, comes

SERVE = str(Path(sys.executable).parent / "tessera-serve")


def refused(*arguments: str) -> str:
    done = subprocess.run([SERVE, *arguments], capture_output=True, text=True, timeout=PATIENCE_S)
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
    assert f"has schema 0, this Tessera reads {SCHEMA - 1} and {SCHEMA}" in refused(str(copy))


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


def _slots(server: Server) -> float:
    with urllib.request.urlopen(f"http://localhost:{server.metrics_port}/metrics") as answer:
        told = re.search(rb"^tessera_slots\S* (\S+)$", answer.read(), re.MULTILINE)
    return float(told[1]) if told else 0.0


def test_killed_outright_it_leaves_no_process_and_its_memory_to_the_next(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TESSERA_SLOTS")
    with serving(bundle, tmp_path / "log", "--threads=1") as server:
        comes(lambda: _slots(server) == CPU_SLOTS)  # by itself; here since a start takes long
        family = family_of(server)
        kept = shared_memory_of(server)
        assert len([path for path in kept if path.is_file()]) > 10, "the regions of the models"
        server.process.kill()
        _, alive = psutil.wait_procs(family, timeout=PATIENCE_S)
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
        assert {"", ".activity", ".costs", ".key"} <= {path.suffix for path in kept}
    sweep_boards()
    assert not [path for path in kept if path.exists()]


def test_without_a_bundle_the_log_says_what_to_set(tmp_path: Path) -> None:
    found = find_server(tmp_path)
    http, grpc, metrics = free_ports(3)
    line = command(found, [model_repository()], Ports(http, grpc, metrics), load=["encode"])
    variables = {k: v for k, v in environment(found).items() if k != "TESSERA_BUNDLE"}
    with (tmp_path / "log").open("wb") as log:
        ended = subprocess.run(line, env=variables, stdout=log, stderr=log, timeout=PATIENCE_S)
    assert ended.returncode != 0
    assert "TESSERA_BUNDLE is not set; set it to the folder of a bundle" in (
        tmp_path / "log"
    ).read_text(errors="replace")


def test_threads_and_address_reach_the_server_and_an_interrupt_ends_it(
    bundle: Path, tmp_path: Path
) -> None:
    """Only `tessera-serve` may load and unload models: a model may be any code."""
    log, flags = tmp_path / "log", ("--threads=1", "--drain-seconds=0.5", "--log-format=json")
    with serving(bundle, log, "--host=127.0.0.2", *flags) as server:
        (triton,) = psutil.Process(server.process.pid).children()
        assert triton.environ()["TESSERA_THREADS"] == "1"
        checked = json.loads(Path(triton.environ()["TESSERA_BOARD"] + ".checked").read_text())
        assert checked["files"].keys() == read_manifest(bundle).files.keys()
        assert not server.ready(), "it listens at other addresses, too"
        for protocol, port in ((http, server.http_port), (grpc, server.grpc_port)):
            with contextlib.closing(protocol.InferenceServerClient(f"127.0.0.2:{port}")) as client:
                closed: list[Callable[[], Any]] = [
                    partial(client.unload_model, "jobs"),
                    partial(client.load_model, "jobs"),
                    partial(client.update_log_settings, {"log_info": False}),
                    client.get_log_settings,
                    client.get_trace_settings,
                    client.get_system_shared_memory_status,
                ]
                for ask in closed:
                    with pytest.raises(InferenceServerException, match="restricted"):
                        ask()
                assert client.is_model_ready("jobs")
        victim = next(p for p, m in model_processes(triton.pid).items() if m == "jobs")
        os.kill(victim, signal.SIGKILL)
        comes(lambda: "model jobs is back after" in log.read_text())
        with Client(f"http://127.0.0.2:{server.http_port}") as client:
            assert client.generate("a", steps=1, job_id="after").info.ticks == 1
            assert client.status("after").phase == "done"
        family = family_of(server)
        assert len(family) > 10
        assert shared_memory_of(server)
        interrupt_while_it_draws(server, f"http://127.0.0.2:{server.http_port}")
        assert "are cancelled: they have not ended within 0.5 s" in log.read_text()
        _, alive = psutil.wait_procs(family, timeout=PATIENCE_S)
    assert not alive
    assert not shared_memory_of(server)
    lines = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
    ends = [(line["job_id"], line["outcome"], line["steps"]) for line in lines]
    assert ends == [("after", "done", 1), ("long", "cancelled", 1000)]
    assert os.environ.get("TESSERA_THREADS") is None


def interrupt_while_it_draws(server: Server, url: str) -> None:
    """A picture of so many steps does not end in the time that it is given."""
    with Client(url) as client, ThreadPoolExecutor(1) as pool:
        drawn = pool.submit(client.generate, "a", job_id="long", steps=1000)
        wait_for_step(client, "long", 1)
        server.process.send_signal(signal.SIGINT)  # for SIGTERM see `ended_whole`
        assert isinstance(drawn.exception(PATIENCE_S), Cancelled)
        assert server.process.wait(PATIENCE_S) == 0


def test_a_tritonserver_that_has_ended_is_started_again(bundle: Path, tmp_path: Path) -> None:
    """On the same ports, with the templates that it had, and with the pictures that it drew."""
    log = tmp_path / "log"
    with (
        serving(bundle, log, f"--templates={tmp_path / 'templates'}") as server,
        Client(server.http) as client,
    ):
        before = client.generate("a red circle", seed=1, steps=2)
        template = client.register_template(ramp(), steps=2).template
        seen: list[str | None] = [before.info.worker]
        for number in range(2):
            (triton,) = psutil.Process(server.process.pid).children()
            shared = set(shared_memory_of(server))
            triton.kill()
            triton.wait(PATIENCE_S)
            again = partial(_worker, client)
            seen.append(again_until(again, lambda worker: worker not in (None, *seen)))
            comes(lambda: server.ready("serving"))  # it draws before its first pictures end
            assert log.read_text().count("tritonserver has ended by signal 9") == number + 1
            assert not shared & set(shared_memory_of(server))
        after = client.generate("a red circle", seed=1, steps=2)
        assert np.array_equal(np.asarray(before.image), np.asarray(after.image))
        assert [kept["template"] for kept in client.templates()["templates"]] == [template]
        assert server.ready("serving")
        with in_company(client):
            server.process.send_signal(signal.SIGTERM)
            comes(lambda: not server.ready("serving"))
            assert server.ready(), "it lives as long as a job runs"
        assert server.process.wait(PATIENCE_S) == 0
        assert not shared_memory_of(server)


def _worker(client: Client) -> str | None:
    """Who draws, or `None` while nobody does."""
    try:
        return client.generate("a", steps=1).info.worker
    except TesseraError:
        return None

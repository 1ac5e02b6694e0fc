"""Model processes that die, and what becomes of the requests in them. Has a server of its own."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pytest

from bench.server import Server
from tessera.errors import Unavailable
from tessera.shared.processes import model_processes
from tessera_client import Client, Control
from tests.samples.jobs import wait_for_step
from tests.samples.servers import ended_whole

PATIENCE_S = 120.0
"""Of what takes 5 to 15 s on two cores; a limit for a hang, nothing that is measured."""


@pytest.fixture(scope="module")
def fragile(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    log = tmp_path_factory.mktemp("fragile") / "log"
    with ended_whole(bundle, log, "--template-size=0.1") as server:
        yield server


def tritonserver(server: Server) -> int:
    (child,) = psutil.Process(server.process.pid).children()
    return child.pid


def kill(server: Server, model: str) -> None:
    for pid, name in model_processes(tritonserver(server)).items():
        if name == model:
            os.kill(pid, signal.SIGKILL)


@contextlib.contextmanager
def killed(server: Server, model: str) -> Iterator[None]:
    """Kill its processes; wait at the end until the supervisor says that it is back."""
    sentence = f"model {model} is back after"
    before = server.log.read_text().count(sentence)
    kill(server, model)
    yield
    server.wait_until(lambda: server.log.read_text().count(sentence) > before, PATIENCE_S)
    server.wait_ready(PATIENCE_S, [model])


def wait_not_ready(server: Server, model: str) -> None:
    end = time.monotonic() + 10  # a load takes several seconds, so that this is always seen
    while server.ready(model):
        assert time.monotonic() < end, "still ready 10 s after its process was killed"
        time.sleep(0.005)


def test_killing_a_controlnet(fragile: Server) -> None:
    """The requests that it guides get an error, the others finish unchanged; it comes back."""
    controls = [Control("edges", image=np.zeros((128, 128, 3), np.uint8))]
    with Client(fragile.http, timeout=180, retries=0) as client, ThreadPoolExecutor(3) as pool:
        plain = client.generate("a red circle", seed=1, steps=150)
        guided = client.generate("a red circle", seed=1, steps=5, controls=controls)
        lost = pool.submit(client.generate, "a", job_id="guided", steps=300, controls=controls)
        wait_for_step(client, "guided", 2)
        others = [pool.submit(client.generate, "a red circle", seed=1, steps=150, job_id="beside")]
        wait_for_step(client, "beside", 1)
        with killed(fragile, "controlnet_edges"):
            with pytest.raises(Unavailable, match="the controlnet_edges model is being restarted"):
                lost.result(timeout=PATIENCE_S)  # told when the ControlNet is back
            others.append(pool.submit(client.generate, "a red circle", seed=1, steps=150))
            for done in others:
                found = np.asarray(done.result(timeout=PATIENCE_S).image, np.int16)
                assert np.abs(found - np.asarray(plain.image, np.int16)).max() <= 1
        after = client.generate("a red circle", seed=1, steps=5, controls=controls)
        assert client.status("guided").phase == "failed"
    assert np.array_equal(np.asarray(after.image), np.asarray(guided.image))


def test_killing_denoise(fragile: Server) -> None:
    with Client(fragile.http, timeout=180, retries=0) as client, ThreadPoolExecutor(4) as pool:
        before = client.generate("a red circle", seed=1, steps=5)
        flying = [pool.submit(client.generate, "a", job_id=f"dies{i}", steps=300) for i in range(3)]
        for i in range(3):
            wait_for_step(client, f"dies{i}", 1)
        began = time.monotonic()
        with killed(fragile, "denoise"):
            wait_not_ready(fragile, "denoise")
            for future in flying:
                with pytest.raises(Unavailable, match="the denoise model is being restarted"):
                    future.result(timeout=PATIENCE_S)
        fragile.wait_ready(PATIENCE_S)
        healed = time.monotonic() - began
        after = client.generate("a red circle", seed=1, steps=5)
        assert client.status("dies0").phase == "failed"
    assert np.array_equal(np.asarray(after.image), np.asarray(before.image))
    log = fragile.log.read_text()
    assert "a process of model denoise has ended; reloading the model" in log
    (started,) = re.findall(r"is ready after ([\d.]+) s", log)
    assert healed < float(started), "to start the server anew would have been quicker"


@pytest.mark.parametrize("model", ["denoise", "decode"])
def test_a_retrying_client_does_not_notice(fragile: Server, model: str) -> None:
    job = f"survives-{model}"
    with Client(fragile.grpc, timeout=180, retries=8) as client, ThreadPoolExecutor(1) as pool:
        future = pool.submit(client.generate, "a", job_id=job, steps=100)
        wait_for_step(client, job, 1)
        with killed(fragile, model):
            assert future.result().info.steps == 100


@pytest.mark.parametrize("model", ["encode", "decode", "jobs", "render", "edit"])
def test_killing_any_other_model(fragile: Server, model: str) -> None:
    with killed(fragile, model):
        pass
    fragile.wait_ready(PATIENCE_S)
    with Client(fragile.http, timeout=60, retries=0) as client:
        assert client.generate("a", steps=2, job_id=f"after-{model}").info.ticks == 2
        assert client.status(f"after-{model}").phase == "done"


def test_killing_templates_while_it_records(fragile: Server) -> None:
    """Nothing half is left, and the next one records it."""
    image = np.full((128, 128, 3), 90, np.uint8)
    with Client(fragile.http, timeout=60, retries=0) as client, ThreadPoolExecutor(1) as pool:
        with pytest.raises(Unavailable, match=r"does not fit the 0\.1 GB .* see --template-size"):
            client.register_template(image, steps=1000)
        future = pool.submit(client.register_template, image, steps=400)
        recordings = fragile.log.parent / "templates" / "recordings"
        fragile.wait_until(lambda: bool(list(recordings.glob(".*/*.safetensors"))), 60)
        with killed(fragile, "templates"), pytest.raises(Unavailable):
            future.result()
        assert client.templates()["disk"]["bytes"] == 0
        assert client.register_template(image, steps=4).recorded


def test_requests_on_their_way_to_a_dead_decode_are_told(fragile: Server) -> None:
    with Client(fragile.http, timeout=60, retries=0) as client, ThreadPoolExecutor(1) as pool:
        future = pool.submit(client.generate, "a", job_id="flying", steps=150)
        wait_for_step(client, "flying", 1)
        with (
            killed(fragile, "decode"),
            pytest.raises(Unavailable, match="a model is being restarted; try again"),
        ):
            future.result()
        assert client.generate("a", steps=1).info.ticks == 1

"""Model processes that die, and what becomes of the requests in them. Has a server of its own."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pytest

from bench.server import Server, serving
from tessera.errors import Unavailable
from tessera.processes import model_processes
from tessera_client import Client, Control
from tests.triton.test_jobs import wait_for_step


@pytest.fixture(scope="module")
def fragile(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(
        bundle, tmp_path_factory.mktemp("fragile") / "log", "--template-size=0.1"
    ) as server:
        yield server


def tritonserver(server: Server) -> int:
    (child,) = psutil.Process(server.process.pid).children()
    return child.pid


def kill(server: Server, model: str) -> None:
    victim = next(p for p, m in model_processes(tritonserver(server)).items() if m == model)
    os.kill(victim, signal.SIGKILL)


def wait_not_ready(server: Server, model: str) -> None:
    end = time.monotonic() + 2
    while server.ready(model):
        assert time.monotonic() < end, "still ready 2 s after its process was killed"
        time.sleep(0.005)


def test_killing_a_controlnet(fragile: Server) -> None:
    """The requests that it guides get an error, the others finish unchanged; it comes back."""
    controls = [Control("edges", image=np.zeros((128, 128, 3), np.uint8))]
    with Client(fragile.http, timeout=60, retries=0) as client, ThreadPoolExecutor(3) as pool:
        plain = client.generate("a red circle", seed=1, steps=150)
        guided = client.generate("a red circle", seed=1, steps=5, controls=controls)
        others = [pool.submit(client.generate, "a red circle", seed=1, steps=150)]
        lost = pool.submit(client.generate, "a", job_id="guided", steps=300, controls=controls)
        wait_for_step(client, "guided", 2)
        assert not others[0].done(), "it was over before the ControlNet was killed"
        kill(fragile, "controlnet_edges")
        with pytest.raises(Unavailable, match="the controlnet_edges model is being restarted"):
            lost.result(timeout=30)  # told when the ControlNet is back: 6 to 12 s, mostly imports
        others.append(pool.submit(client.generate, "a red circle", seed=1, steps=150))
        for other in others:
            found = np.asarray(other.result(timeout=30).image, np.int16)
            assert np.abs(found - np.asarray(plain.image, np.int16)).max() <= 1
        fragile.wait_ready(30, ["controlnet_edges"])
        after = client.generate("a red circle", seed=1, steps=5, controls=controls)
        assert client.status("guided").phase == "failed"
    assert np.array_equal(np.asarray(after.image), np.asarray(guided.image))
    assert "model controlnet_edges is back after" in fragile.log.read_text()


def test_killing_denoise(fragile: Server) -> None:
    with Client(fragile.http, timeout=60, retries=0) as client, ThreadPoolExecutor(4) as pool:
        before = client.generate("a red circle", seed=1, steps=5)
        flying = [pool.submit(client.generate, "a", job_id=f"dies{i}", steps=300) for i in range(3)]
        for i in range(3):
            wait_for_step(client, f"dies{i}", 1)
        began = time.monotonic()
        kill(fragile, "denoise")
        wait_not_ready(fragile, "denoise")
        for future in flying:
            with pytest.raises(Unavailable, match="the denoise model is being restarted"):
                future.result(timeout=10)
        fragile.wait_ready(10 - (time.monotonic() - began))
        healed = time.monotonic() - began
        after = client.generate("a red circle", seed=1, steps=5)
        assert client.status("dies0").phase == "failed"
    assert healed < 10
    assert np.array_equal(np.asarray(after.image), np.asarray(before.image))
    log = fragile.log.read_text()
    assert "a process of model denoise has ended; reloading the model" in log
    assert "model denoise is back after" in log


@pytest.mark.parametrize("model", ["denoise", "decode"])
def test_a_retrying_client_does_not_notice(fragile: Server, model: str) -> None:
    job = f"survives-{model}"
    with Client(fragile.grpc, timeout=60, retries=5) as client, ThreadPoolExecutor(1) as pool:
        future = pool.submit(client.generate, "a", job_id=job, steps=40)
        wait_for_step(client, job, 1)
        kill(fragile, model)
        assert future.result().info.steps == 40
    fragile.wait_ready(20)


@pytest.mark.parametrize("model", ["encode", "decode", "jobs", "render", "edit"])
def test_killing_any_other_model(fragile: Server, model: str) -> None:
    kill(fragile, model)
    time.sleep(0.2)
    fragile.wait_ready(60)
    with Client(fragile.http, timeout=60, retries=8) as client:
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
        end = time.monotonic() + 30
        while not list(recordings.glob(".*/*.safetensors")) and time.monotonic() < end:
            time.sleep(0.01)
        for pid, model in model_processes(tritonserver(fragile)).items():
            if model == "templates":
                os.kill(pid, signal.SIGKILL)
        with pytest.raises(Unavailable):
            future.result()
        time.sleep(0.2)
        fragile.wait_ready(60)
        assert client.templates()["disk"]["bytes"] == 0
        assert client.register_template(image, steps=4).recorded


def test_requests_on_their_way_to_a_dead_decode_are_told(fragile: Server) -> None:
    with Client(fragile.http, timeout=60, retries=0) as client, ThreadPoolExecutor(1) as pool:
        future = pool.submit(client.generate, "a", job_id="flying", steps=60)
        wait_for_step(client, "flying", 1)
        kill(fragile, "decode")
        with pytest.raises(Unavailable, match="a model is being restarted; try again"):
            future.result()
        fragile.wait_ready(30)
        assert client.generate("a", steps=1).info.ticks == 1

"""Model processes that die, and what becomes of the requests in them. Has a server of its own."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from bench.server import ALL_MODELS, Server
from tessera.errors import RESTARTING, Unavailable
from tessera.shared.processes import identity, model_processes
from tessera_client import Client, Control
from tests.samples.gateways import gateway
from tests.samples.images import ramp
from tests.samples.jobs import ENDLESS, unique, wait_for_step
from tests.samples.raw_http import send
from tests.samples.servers import ended_whole
from tests.samples.waiting import PATIENCE_S, again_until, comes


@pytest.fixture(scope="module")
def fragile(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    log = tmp_path_factory.mktemp("fragile") / "log"
    with ended_whole(bundle, log, "--template-size=0.1", "--stall-seconds=15") as server:
        yield server


def tritonserver(server: Server) -> int:
    (child,) = psutil.Process(server.process.pid).children()
    return child.pid


def processes(server: Server, model: str) -> list[int]:
    return [pid for pid, m in model_processes(tritonserver(server)).items() if m == model]


def kill(server: Server, model: str) -> None:
    for pid in processes(server, model):
        os.kill(pid, signal.SIGKILL)


@contextlib.contextmanager
def killed(server: Server, model: str) -> Iterator[None]:
    """Kill its processes; wait at the end until it is back."""
    with healed(server, model):
        kill(server, model)
        yield


@contextlib.contextmanager
def healed(server: Server, model: str) -> Iterator[None]:
    """Wait at the end until the supervisor says that a model is back which has ended meanwhile."""
    sentence = f"model {model} is back after"
    before = server.log.read_text().count(sentence)
    yield
    server.wait_until(lambda: server.log.read_text().count(sentence) > before, PATIENCE_S)
    server.wait_ready(PATIENCE_S, [model])


def wait_not_ready(server: Server, model: str) -> None:
    """A load takes several seconds, so that this is always seen."""
    comes(lambda: not server.ready(model))


def test_a_process_that_is_stuck_in_its_start(fragile: Server) -> None:
    """It is ended, and the model loaded once more; tritonserver ends, too, if it waits on. On a
    busy machine a process may have started before it is stopped: then the next one is.
    """
    model = "controlnet_silhouette"
    options: dict[str, Any] = {"controls": [Control("silhouette", image=ramp())], "steps": 3}
    with Client(fragile.http, timeout=180) as client:
        client.generate("a", **options)
        while not stuck_in_its_start(fragile, model):
            pass
        fragile.wait_ready(PATIENCE_S, [*ALL_MODELS, "serving"])
        assert client.generate("a", **options).info.control_ticks == 3


def stuck_in_its_start(server: Server, model: str) -> bool:
    """Kill its process and stop the next one; whether that had not started yet. Then it has been
    healed when this returns.
    """
    sentence = f"a process of model {model} has done nothing for 15 s while it started; ending it"
    ends = f"model {model} is back after", "tritonserver has ended by signal 9"

    def healed() -> int:
        return sum(server.log.read_text().count(end) for end in ends)

    before, healed_before = processes(server, model), healed()
    kill(server, model)
    server.wait_until(lambda: bool(stopped(server, model, before)), PATIENCE_S)
    server.wait_until(lambda: sentence in server.log.read_text() or server.ready(model), PATIENCE_S)
    for pid in processes(server, model):
        os.kill(pid, signal.SIGCONT)
    server.wait_until(lambda: healed() > healed_before, PATIENCE_S)
    return sentence in server.log.read_text()


def stopped(server: Server, model: str, but: list[int]) -> list[int]:
    """Its processes but some, which are stopped."""
    found = [pid for pid in processes(server, model) if pid not in but]
    for pid in found:
        os.kill(pid, signal.SIGSTOP)
    return found


def test_a_process_that_ends_while_the_server_starts(fragile: Server) -> None:
    """Its model is loaded again, though it ended before anybody watched it. On a busy machine the
    server may be ready by then: it is started once more.
    """
    ours = psutil.Process(fragile.process.pid)
    watched = len(model_processes(tritonserver(fragile)))
    comes(lambda: ours.num_fds() > watched)  # one for each process, and others
    before = ours.num_fds()
    while not ended_in_the_start(fragile, "adapters"):
        pass
    comes(lambda: ours.num_fds() < before + watched // 2)  # those of the run before are closed
    with Client(fragile.http, timeout=180) as client:
        assert client.adapters()


def test_a_process_that_hangs_while_the_server_starts(fragile: Server) -> None:
    """The first pictures wait for it. It is ended, and everything is started once more; on a busy
    machine the server may be ready before it is stopped, and loads the model again.
    """
    sentence = "a process of model decode has been stopped for 15 s; ending it"
    before, seen = tritonserver(fragile), fragile.log.read_text().count(sentence)
    os.kill(before, signal.SIGKILL)
    comes(lambda: fragile.ready("decode") and not psutil.pid_exists(before))
    (process,) = processes(fragile, "decode")
    os.kill(process, signal.SIGSTOP)
    fragile.wait_until(lambda: fragile.log.read_text().count(sentence) > seen, PATIENCE_S)
    comes(lambda: not identity(process))  # tritonserver may collect it much later
    fragile.wait_ready(PATIENCE_S, [*ALL_MODELS, "serving"])
    with Client(fragile.http, timeout=180) as client:
        assert client.generate("a", steps=2).info.ticks == 2


def ended_in_the_start(server: Server, model: str) -> bool:
    """Kill tritonserver, and a model's process in the one that is started then; whether that was
    not ready yet.
    """
    before, ready = tritonserver(server), server.log.read_text().count("is ready after")
    os.kill(before, signal.SIGKILL)
    comes(lambda: server.ready(model) and not psutil.pid_exists(before))
    with healed(server, model):
        kill(server, model)
        starting = server.log.read_text().count("is ready after") == ready
    server.wait_ready(PATIENCE_S, [*ALL_MODELS, "serving"])
    return starting


@pytest.mark.parametrize("model", ["denoise", "controlnet_edges"])
def test_a_process_that_hangs_while_it_serves(fragile: Server, model: str) -> None:
    """It is ended, and no other one: `denoise` only waits for a ControlNet that hangs."""
    options: dict[str, Any] = {"seed": 1, "controls": [Control("edges", image=ramp())]}
    sentence = f"a process of model {model} has done nothing for 15 s though it had work; ending it"
    job = unique("hangs")
    with Client(fragile.http, timeout=PATIENCE_S, retries=0) as client, ThreadPoolExecutor(1) as p:
        before = client.generate("a red circle", steps=5, **options)
        lost = p.submit(client.generate, "a red circle", job_id=job, **ENDLESS, **options)
        wait_for_step(client, job, 2)
        models = model_processes(tritonserver(fragile))
        with healed(fragile, model):
            stopped(fragile, model, but=[])
            with pytest.raises(Unavailable, match=f"the {model} model is being restarted"):
                lost.result(timeout=PATIENCE_S)
        fragile.wait_ready(PATIENCE_S)
        after = client.generate("a red circle", steps=5, **options)
    assert np.array_equal(np.asarray(after.image), np.asarray(before.image))
    ended = [line for line in fragile.log.read_text().splitlines() if "though it had work" in line]
    assert ended[-1].endswith(sentence)
    others = {pid for pid, name in models.items() if name != model}
    assert others <= model_processes(tritonserver(fragile)).keys(), "no other model was loaded anew"


def test_a_process_that_is_stopped_without_work(fragile: Server) -> None:
    """It may hold a lock, and answers nobody."""
    with Client(fragile.http, timeout=PATIENCE_S, retries=0) as client:
        with healed(fragile, "jobs"):
            stopped(fragile, "jobs", but=[])
        assert "a process of model jobs has been stopped for 15 s" in fragile.log.read_text()
        assert client.generate("a", steps=1, job_id="behind").info.ticks == 1
        assert client.status("behind").phase == "done"


def test_a_tritonserver_that_hangs(fragile: Server) -> None:
    """It is ended, and started again with the pictures that it drew."""
    log, sentence = fragile.log, "tritonserver has neither answered nor done anything for 15 s"
    with Client(fragile.http, timeout=PATIENCE_S) as client:
        before = client.generate("a red circle", seed=1, steps=3)
        triton, starts = tritonserver(fragile), log.read_text().count("is ready after")
        os.kill(triton, signal.SIGSTOP)
        fragile.wait_until(lambda: log.read_text().count("is ready after") > starts, PATIENCE_S)
        assert not psutil.pid_exists(triton)
        assert log.read_text().count(sentence) == 1
        after = client.generate("a red circle", seed=1, steps=3)
    assert np.array_equal(np.asarray(after.image), np.asarray(before.image))


def test_killing_a_controlnet(fragile: Server) -> None:
    """The requests that it guides get an error, the others finish unchanged; it comes back."""
    controls = [Control("edges", image=np.zeros((128, 128, 3), np.uint8))]
    with Client(fragile.http, timeout=300, retries=0) as client, ThreadPoolExecutor(3) as pool:
        plain = client.generate("a red circle", seed=1, steps=150)
        guided = client.generate("a red circle", seed=1, steps=5, controls=controls)
        lost = pool.submit(client.generate, "a", job_id="guided", controls=controls, **ENDLESS)
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
    with Client(fragile.http, timeout=300, retries=0) as client, ThreadPoolExecutor(4) as pool:
        before = client.generate("a red circle", seed=1, steps=5)
        flying = [pool.submit(client.generate, "a", job_id=f"dies{i}", **ENDLESS) for i in range(3)]
        for i in range(3):
            wait_for_step(client, f"dies{i}", 1)
        models = model_processes(tritonserver(fragile))
        with killed(fragile, "denoise"):
            wait_not_ready(fragile, "denoise")
            for future in flying:
                with pytest.raises(Unavailable, match="the denoise model is being restarted"):
                    future.result(timeout=PATIENCE_S)
        fragile.wait_ready(PATIENCE_S)
        after = client.generate("a red circle", seed=1, steps=5)
        assert client.status("dies0").phase == "failed"
    assert np.array_equal(np.asarray(after.image), np.asarray(before.image))
    assert "a process of model denoise has ended; reloading the model" in fragile.log.read_text()
    others = {pid for pid, model in models.items() if model != "denoise"}
    assert others <= model_processes(tritonserver(fragile)).keys(), "no other model was loaded anew"


@pytest.mark.parametrize("model", ["denoise", "decode"])
def test_a_retrying_client_does_not_notice(fragile: Server, model: str) -> None:
    job = f"survives-{model}"
    with Client(fragile.grpc, timeout=300, retries=8) as client, ThreadPoolExecutor(1) as pool:
        future = pool.submit(client.generate, "a", job_id=job, steps=200)
        wait_for_step(client, job, 1)
        with killed(fragile, model):
            assert future.result().info.steps == 200


@pytest.mark.parametrize("model", ["encode", "decode", "jobs", "render", "edit"])
def test_killing_any_other_model(fragile: Server, model: str) -> None:
    with killed(fragile, model):
        pass
    fragile.wait_ready(PATIENCE_S)
    with Client(fragile.http, timeout=300, retries=0) as client:
        assert client.generate("a", steps=2, job_id=f"after-{model}").info.ticks == 2
        assert client.status(f"after-{model}").phase == "done"


def test_killing_templates_while_it_records(fragile: Server) -> None:
    """Nothing half is left, and the next one records it."""
    image = np.full((128, 128, 3), 90, np.uint8)
    with Client(fragile.http, timeout=300, retries=0) as client, ThreadPoolExecutor(1) as pool:
        with pytest.raises(Unavailable, match=r"does not fit the 0\.1 GB .* see --template-size"):
            client.register_template(image, steps=1000)
        future = pool.submit(client.register_template, image, steps=400)
        recordings = fragile.log.parent / "templates" / "recordings"
        fragile.wait_until(lambda: bool(list(recordings.glob(".*/*.safetensors"))), PATIENCE_S)
        with killed(fragile, "templates"), pytest.raises(Unavailable):
            future.result()
        assert client.templates()["disk"]["bytes"] == 0
        assert client.register_template(image, steps=4).recorded


def test_requests_on_their_way_to_a_dead_decode_are_told(fragile: Server) -> None:
    """Which has to be dead when they come: now and then one comes before it is killed, or when it
    is back. That one gets its picture.
    """
    with Client(fragile.http, timeout=300, retries=0) as client, ThreadPoolExecutor(1) as pool:

        def told() -> str:
            job = unique("flying")
            future = pool.submit(client.generate, "a", job_id=job, steps=150)
            wait_for_step(client, job, 1)
            with killed(fragile, "decode"):
                error = future.exception()
            assert error is None or isinstance(error, Unavailable)
            return str(error or "")

        assert "a model is being restarted; try again" in again_until(told, bool)
        assert client.generate("a", steps=1).info.ticks == 1


def test_through_the_gateway_a_killed_member_is_unavailable(
    fragile: Server, tmp_path: Path
) -> None:
    """Triton itself answers 500 to who was in an ensemble's member."""
    body = json.dumps(
        {"PROMPT": "a", "STEPS": 1000, "SCHEDULER": "heun", "JOB_ID": "through"}
    ).encode()
    with (
        gateway(fragile.grpc, tmp_path / "log", f"--kserve={fragile.http}") as kserve,
        Client(fragile.http) as client,
        ThreadPoolExecutor(1) as pool,
    ):
        path = "/v2/models/generate/generate"
        lost = pool.submit(send, kserve.url, "POST", path, body)
        wait_for_step(client, "through", 1)
        with killed(fragile, "render"):
            answer = lost.result(timeout=PATIENCE_S)
        assert (answer.status, answer.error) == (503, RESTARTING)
        drawn = json.dumps({"PROMPT": "a", "STEPS": 1}).encode()
        assert send(kserve.url, "POST", path, drawn).status == 200

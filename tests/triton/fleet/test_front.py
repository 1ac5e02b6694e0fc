"""A fleet of two servers that run already: answers are one server's, bit for bit."""

from __future__ import annotations

import contextlib
import json
import time
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc

from bench.server import Server
from tessera.errors import Cancelled, InvalidInput, UnknownJob
from tessera_client import Client, Control, Info, Lora
from tests.samples.fleets import RunningFleet
from tests.samples.jobs import ENDLESS, unique, wait_for_step
from tests.samples.waiting import comes


def square() -> np.ndarray[tuple[int, int], np.dtype[np.uint8]]:
    mask = np.zeros((128, 128), np.uint8)
    mask[40:88, 32:80] = 255
    return mask


def test_pictures_are_one_servers(through: Client, http_client: Client) -> None:
    options: Any = {"steps": 6, "seed": 5, "loras": [Lora("night")]}
    alone = http_client.generate("a red circle", **options)
    picture = through.generate("a red circle", **options)
    np.testing.assert_array_equal(np.asarray(picture.image), np.asarray(alone.image))


def test_edits_are_one_servers(through: Client, http_client: Client) -> None:
    image = http_client.generate("a red circle", steps=4, seed=1).image
    control = Control("edges", image)
    options: Any = {"steps": 6, "seed": 5, "mode": "dense", "controls": [control]}
    alone = http_client.edit(image, square(), "a blue square", **options)
    picture = through.edit(image, square(), "a blue square", **options)
    np.testing.assert_array_equal(np.asarray(picture.image), np.asarray(alone.image))


def test_a_template_stays_with_its_worker(through: Client, fleet: RunningFleet) -> None:
    """Unless it is copied, which nothing speaks for while its worker has nothing else to do."""
    with fleet.clients() as (http, grpc):
        image = http.generate("a green triangle", steps=4, seed=100).image
        copied = copies_made(fleet)
        template = through.register_template(image, steps=5).template
        options: Any = {"template": template, "steps": 5, "mode": "sparse", "quality": "fast"}
        infos = [
            client.edit(None, square(), "a star", **options).info
            for client in (http, grpc, http, grpc)
        ]
        assert copies_made(fleet) == copied
        assert len({info.worker for info in infos}) == copies_of(http, template) == 1
        assert {info.mode for info in infos} == {"sparse"}
        for client in (http, grpc):
            listed = [t["template"] for t in client.templates()["templates"]]
            assert listed.count(template) == 1
        through.evict_template(template)
        with pytest.raises(InvalidInput, match=template):
            http.edit(None, square(), "a star", template=template, steps=5)


def copies_made(fleet: RunningFleet) -> float:
    """Of hot templates, so far."""
    return told(fleet).get('tessera_fleet_copies_total{outcome="done",reason="hot"}', 0.0)


def copies_of(client: Client, template: str) -> int:
    listed = {t["template"]: t["copies"] for t in client.templates()["templates"]}
    return int(listed.get(template, 0))


def drawn_at_once(client: Client, template: str) -> list[Info]:
    """More edits of a template by its id than a worker has slots for."""

    def draw(_: int) -> Info:
        options: Any = {"template": template, "steps": 5, "mode": "sparse"}
        return client.edit(None, square(), "a star", **options).info

    with ThreadPoolExecutor(24) as pool:
        infos = list(pool.map(draw, range(24)))
    assert {info.mode for info in infos} == {"sparse"}
    return infos


def wait_until_both_draw(fleet: RunningFleet, draw: Callable[[], list[Info]]) -> set[str]:
    """Draw again and again until both workers have drawn.

    A worker that tells its load late, on a busy machine, is left out for a while.
    """
    end, drawn = time.monotonic() + 300, set[str]()
    while len(drawn) < 2:
        assert time.monotonic() < end, fleet.about()
        drawn |= {info.worker for info in draw()}
    return drawn


def test_a_template_is_registered_on_both_workers(
    through: Client, http_client: Client, fleet: RunningFleet
) -> None:
    image = through.generate("a green triangle", steps=4, seed=101).image
    done = through.register_template(image, steps=5, copies=2)
    try:
        assert done.copies == copies_of(through, done.template) == 2
        wait_until_both_draw(fleet, lambda: drawn_at_once(through, done.template))
        assert through.register_template(template=done.template, steps=5, copies=1).copies == 1
        with pytest.raises(InvalidInput, match="COPIES is 0; accepted: an integer from 1"):
            through.register_template(image, steps=5, copies=0)
        with pytest.raises(InvalidInput, match="COPIES is 2; accepted: 1 by a single server"):
            http_client.register_template(image, steps=5, copies=2)
    finally:
        through.evict_template(done.template)
    assert copies_of(through, done.template) == 0


def test_a_hot_template_is_copied(through: Client, fleet: RunningFleet) -> None:
    """Its edits wait on one worker, while the other one has nothing to do."""
    image = through.generate("a green triangle", steps=4, seed=102).image
    template = through.register_template(image, steps=5).template
    assert copies_of(through, template) == 1
    copied = copies_made(fleet)
    end = time.monotonic() + 300
    while copies_of(through, template) < 2:
        assert time.monotonic() < end, fleet.about()
        drawn_at_once(through, template)
    comes(lambda: copies_made(fleet) > copied)
    wait_until_both_draw(fleet, lambda: drawn_at_once(through, template))
    through.evict_template(template)
    assert copies_of(through, template) == 0


def test_jobs_are_found(through: Client, fleet: RunningFleet) -> None:
    job = unique("sticks")
    with fleet.clients() as (http, grpc), ThreadPoolExecutor(1) as pool:
        drawn = pool.submit(through.generate, "a circle", job_id=job, **ENDLESS)
        for client in (http, grpc):
            wait_for_step(client, job, 1)
        assert sum(worker["in_flight"] for worker in fleet.about()["workers"]) == 1
        grpc.cancel(job)
        assert isinstance(drawn.exception(), Cancelled)
        with pytest.raises(UnknownJob):
            http.status("nobody")


def plain_at_once(fleet: RunningFleet, *, steps: int) -> list[Info]:
    """24 at a time, more than a worker has slots for; none has anything that the other lacks."""

    def draw(url: str) -> Info:
        with Client(url, timeout=600, retries=0) as client:
            return client.generate("a circle", steps=steps).info

    with ThreadPoolExecutor(24) as pool:
        return list(pool.map(draw, (fleet.http, fleet.grpc) * 12))


def test_both_workers_work(fleet: RunningFleet) -> None:
    assert len(wait_until_both_draw(fleet, lambda: plain_at_once(fleet, steps=20))) == 2


def test_metadata_is_that_of_a_server(fleet: RunningFleet, server: Server) -> None:
    answers = []
    for port in (fleet.grpc_port, server.grpc_port):
        client = tritonclient.grpc.InferenceServerClient(f"127.0.0.1:{port}")
        assert client.is_server_ready()
        assert client.is_model_ready("generate")
        answers.append(
            (
                client.get_server_metadata(as_json=True),
                client.get_model_config("edit", as_json=True),
            )
        )
        client.close()
    assert answers[0] == answers[1]


def generated(port: int) -> int:
    """How many pictures a server, or a fleet, has counted."""
    with contextlib.closing(tritonclient.grpc.InferenceServerClient(f"127.0.0.1:{port}")) as client:
        (counts,) = client.get_inference_statistics("generate").model_stats
        return int(counts.inference_count)


def test_statistics_count_what_was_sent_to_all(fleet: RunningFleet) -> None:
    """Over both protocols. Triton counts a picture a little after its answer."""
    ports = [int(w["address"].rpartition(":")[2]) for w in fleet.about()["workers"]]
    assert len(ports) == 2

    def of_both() -> list[int]:
        return [generated(port) for port in ports]

    def of_the_fleet() -> int:
        """While the workers count nothing."""
        while True:
            before = of_both()
            with urllib.request.urlopen(f"{fleet.http}/v2/models/generate/stats") as answer:
                over_http = json.load(answer)["model_stats"][0]["inference_count"]
            over_grpc = generated(fleet.grpc_port)
            if of_both() == before:
                assert over_http == over_grpc == sum(before)
                return over_grpc

    counted = of_the_fleet()
    drawn: list[Info] = []

    def draw() -> list[Info]:
        drawn.extend(plain_at_once(fleet, steps=4))
        return drawn

    wait_until_both_draw(fleet, draw)
    comes(lambda: of_the_fleet() >= counted + len(drawn))


def told(fleet: RunningFleet) -> dict[str, float]:
    """Prometheus."""
    with urllib.request.urlopen(f"{fleet.http}/metrics") as answer:
        lines = answer.read().decode().splitlines()
    return {k: float(v) for k, _, v in (line.rpartition(" ") for line in lines if line[0] != "#")}


def test_prometheus_is_told(fleet: RunningFleet) -> None:
    comes(lambda: told(fleet)['tessera_fleet_workers{state="live"}'] == 2)
    with fleet.clients() as clients:
        before = told(fleet)
        for client in clients:
            client.generate("a circle", steps=2)
        after = told(fleet)

    def more(name: str) -> float:
        return sum(
            value - before.get(key, 0)
            for key, value in after.items()
            if key.startswith(f"tessera_fleet_{name}")
        )

    again = more("retries_total")
    assert more('predicted_seconds_count{path="dense"') == 2 + again
    assert more('error_ratio_count{path="dense"') == 2
    assert more('requests_total{outcome="done"') == 2


def test_the_generate_extension(fleet: RunningFleet) -> None:
    content = json.dumps({"PROMPT": "a circle", "STEPS": 2, "JOB_ID": "extension"}).encode()
    request = urllib.request.Request(f"{fleet.http}/v2/models/generate/generate", content)
    with urllib.request.urlopen(request) as answer:
        assert json.loads(json.load(answer)["INFO"])["steps"] == 2


def test_bad_input_is_refused_as_by_one_server(through: Client, http_client: Client) -> None:
    sentences = []
    for client in (through, http_client):
        with pytest.raises(InvalidInput) as caught:
            client.generate("a circle", steps=0)
        sentences.append(str(caught.value))
    assert sentences[0] == sentences[1]

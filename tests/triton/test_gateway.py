"""The gateway in front of a real server: callers that go away, jobs, keys, and bodies that are
meant to do harm.
"""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import select
import signal
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from PIL import Image

from bench.server import Server, free_ports
from tessera_client import Client
from tessera_gateway.keys import make_key
from tessera_gateway.pictures import base64_of
from tests.samples.gateways import RunningGateway, gateway
from tests.samples.jobs import ENDLESS, LONG_TICKS, in_company, unique, wait_for_step
from tests.samples.waiting import PATIENCE_S, again_until, comes

CIRCLE = "a large red circle at the left on a blue background"
TICKS = 2
"""Within which a slot is free."""
REFUSED_WITHIN_S = 1.0
"""Of the gateway's processor time: how long that takes says how busy the machine is."""
MEMORY = 100e6


@pytest.fixture(scope="module")
def running(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    with gateway(server.grpc, tmp_path_factory.mktemp("gateway") / "log") as started:
        yield started


def post(url: str, body: dict[str, Any], **headers: str) -> tuple[int, dict[str, Any], Any]:
    """Status, content and headers of an answer."""
    data = json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json", **headers})
    try:
        with urllib.request.urlopen(request) as answer:
            return answer.status, json.loads(answer.read()), answer.headers
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read()), error.headers


def get(url: str, method: str = "GET") -> Any:
    with urllib.request.urlopen(urllib.request.Request(url, method=method)) as answer:
        return json.loads(answer.read())


def picture(width: int = 256, height: int = 256) -> str:
    sink = io.BytesIO()
    Image.new("RGB", (width, height), "navy").save(sink, "PNG")
    return "data:image/png;base64," + base64_of(sink.getvalue())


def slow(job_id: str, **fields: Any) -> dict[str, Any]:
    """A body whose picture takes longer than its test."""
    return {"prompt": CIRCLE, "tessera": {**ENDLESS, "job_id": job_id}, **fields}


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("generations", {"size": "256x256"}),
        ("generations", {"size": "256x256", "stream": True}),
        ("generations", {"size": "256x256", "stream": True, "partial_images": 3}),
        ("edits", {"images": [{"image_url": picture()}]}),
        ("edits", {"images": [{"image_url": picture()}], "stream": True}),
    ],
    ids=["generation", "stream", "previews", "edit", "stream of an edit"],
)
def test_a_caller_that_goes_away_frees_its_slot(
    running: RunningGateway, http_client: Client, path: str, fields: dict[str, Any]
) -> None:
    """Beside pictures that make its ticks long: two of them are time enough for the gateway."""
    job_id = unique("gone")
    body = slow(job_id, **fields)
    if path == "edits":
        body["tessera"]["mode"] = "dense"  # else its many steps are recorded afterwards
    with in_company(http_client, 4, **LONG_TICKS):
        connection = http.client.HTTPConnection("127.0.0.1", running.port)
        head = {"Content-Type": "application/json"}
        connection.request("POST", f"/v1/images/{path}", json.dumps(body), head)
        wait_for_step(http_client, job_id, 2)
        assert connection.sock
        connection.sock.close()
        connection.close()
        left_at = http_client.status(job_id).step
        status = again_until(lambda: http_client.status(job_id), lambda status: status.ended)
    assert status.phase == "cancelled"
    assert status.step <= left_at + TICKS


def test_a_job_is_watched_and_cancelled(running: RunningGateway, http_client: Client) -> None:
    job_id = unique("watched")
    answers: list[Any] = []
    body = slow(job_id, size="256x256")
    asking = threading.Thread(
        target=lambda: answers.append(post(f"{running.url}/v1/images/generations", body))
    )
    asking.start()
    wait_for_step(http_client, job_id, 4)
    url = f"{running.url}/v1/jobs/{job_id}"
    status = get(url)
    assert (status["phase"], status["total"], status["place"]) == ("denoising", 1000, None)
    assert status["seconds_left"] > 0
    with urllib.request.urlopen(f"{url}/events?previews=true") as events:
        kinds = read_events(events)
        assert {next(kinds), next(kind for kind in kinds if kind != "status")} == {
            "status",
            "preview",
        }
    assert not http_client.status(job_id).ended  # a watcher that leaves cancels nothing
    assert get(url, "DELETE")["cancelled"]
    asking.join(300)
    ((code, content, headers),) = answers
    assert (code, content["error"]["code"]) == (409, "job_cancelled")
    assert headers["x-should-retry"] == "false"
    with urllib.request.urlopen(f"{url}/events") as events:
        (line,) = [li for li in events.read().decode().splitlines() if li.startswith("data")]
    assert json.loads(line.removeprefix("data: "))["phase"] == "cancelled"


def read_events(stream: Any) -> Iterator[str]:
    for line in stream:
        if line.startswith(b"event: "):
            yield line.decode().strip().removeprefix("event: ")


def test_an_unknown_job_is_not_found(running: RunningGateway) -> None:
    with pytest.raises(urllib.error.HTTPError) as raised:
        get(f"{running.url}/v1/jobs/nobody")
    assert raised.value.code == 404
    assert json.loads(raised.value.read())["error"]["code"] == "job_not_found"


def test_keys_and_their_limits(server: Server, http_client: Client, tmp_path: Path) -> None:
    token, lines = make_key("alice")
    keys = tmp_path / "keys.toml"
    hurried, more = make_key("carol")
    keys.write_text(f"{lines}in_flight = 1\n{more}per_minute = 1\n")
    with gateway(server.grpc, tmp_path / "log", f"--keys={keys}") as guarded:
        url, mine = f"{guarded.url}/v1/images/generations", {"Authorization": f"Bearer {token}"}
        short = {"prompt": CIRCLE, "tessera": {"steps": 2}}
        for headers in ({}, {"Authorization": f"Bearer {token}x"}):
            code, content, said = post(url, short, **headers)
            assert (code, content["error"]["code"]) == (401, "invalid_api_key")
            assert said["WWW-Authenticate"] == "Bearer"
        assert post(url, short, **mine)[0] == 200
        code, content, _ = post(url, {**short, "n": 2}, **mine)
        assert (code, content["error"]["param"]) == (400, "n")  # no Retry-After would help
        busy = unique("busy")
        started = threading.Thread(target=post, args=(url, slow(busy)), kwargs=mine)
        started.start()
        wait_for_step(http_client, busy, 1)
        code, content, said = post(url, short, **mine)
        assert (code, content["error"]["code"]) == (429, "rate_limit_exceeded")
        assert int(said["Retry-After"]) >= 1
        http_client.cancel(busy)
        started.join(300)
        assert post(url, short, **mine)[0] == 200
        hers = {"Authorization": f"Bearer {hurried}"}
        assert post(url, short, **hers)[0] == 200
        code, content, said = post(url, short, **hers)
        assert code == 429
        assert "1 a minute" in content["error"]["message"]
        assert 1 < int(said["Retry-After"]) <= 60
        other, lines = make_key("bob")
        keys.write_text(lines)
        guarded.process.send_signal(signal.SIGHUP)
        comes(lambda: post(url, short, **mine)[0] == 401)
        assert post(url, short, Authorization=f"Bearer {other}")[0] == 200
        keys.write_text("keys = 1")
        guarded.process.send_signal(signal.SIGHUP)
        comes(lambda: "the keys stay as they were" in guarded.log.read_text())
        assert post(url, short, Authorization=f"Bearer {other}")[0] == 200
        assert CIRCLE not in guarded.log.read_text()
        assert token not in guarded.log.read_text()


def test_prompts_are_logged_only_on_demand(server: Server, tmp_path: Path) -> None:
    body = {"prompt": CIRCLE, "tessera": {"steps": 1}}
    with gateway(server.grpc, tmp_path / "log", "--log-prompts") as talkative:
        assert post(f"{talkative.url}/v1/images/generations", body)[0] == 200
        comes(lambda: CIRCLE in talkative.log.read_text())
    with gateway(server.grpc, tmp_path / "other") as silent:
        assert post(f"{silent.url}/v1/images/generations", body)[0] == 200
    assert CIRCLE not in (tmp_path / "other").read_text()


def test_without_a_server_it_says_so(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    with gateway(f"grpc://localhost:{port}", tmp_path / "log") as alone:
        url = f"{alone.url}/v1/images/generations"
        code, content, headers = post(url, {"prompt": CIRCLE})
    assert (code, content["error"]["code"]) == (503, "server_unavailable")
    assert headers["Retry-After"] == "1"


def bomb() -> str:
    """100 megapixels in a few kilobytes."""
    sink = io.BytesIO()
    Image.new("1", (10_000, 10_000)).save(sink, "PNG")
    assert len(sink.getvalue()) < 100_000
    return "data:image/png;base64," + base64_of(sink.getvalue())


DEEP = 1_000_000
BODIES: dict[str, tuple[str, bytes, int]] = {
    "picture": (
        "edits",
        json.dumps({"prompt": CIRCLE, "images": [{"image_url": bomb()}]}).encode(),
        400,
    ),
    "mask": (
        "edits",
        json.dumps(
            {
                "prompt": CIRCLE,
                "images": [{"image_url": picture()}],
                "mask": {"image_url": bomb()},
            }
        ).encode(),
        400,
    ),
    "control": (
        "generations",
        json.dumps(
            {
                "prompt": CIRCLE,
                "tessera": {"controls": [{"name": "edges", "image": bomb()}]},
            }
        ).encode(),
        400,
    ),
    "nesting": ("generations", b"[" * DEEP, 400),
    "closed nesting": (
        "generations",
        b'{"prompt": ' + b"[" * DEEP + b"]" * DEEP + b"}",
        400,
    ),
}


@pytest.mark.parametrize("name", BODIES)
def test_a_bomb_is_refused_at_once(running: RunningGateway, name: str) -> None:
    path, body, expected = BODIES[name]
    connection = http.client.HTTPConnection("127.0.0.1", running.port)
    with contextlib.closing(connection), growth(running) as grown:
        began = used(running)
        connection.request("POST", f"/v1/images/{path}", body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        content = json.loads(answer.read())
        took = used(running) - began
    assert answer.status == expected, content
    assert took < REFUSED_WITHIN_S
    assert max(grown) < MEMORY


def used(running: RunningGateway) -> float:
    """Seconds of processor time that a gateway has used."""
    times = psutil.Process(running.process.pid).cpu_times()
    return float(times.user + times.system)


@pytest.mark.parametrize("media_type", ["application/json", "multipart/form-data; boundary=x"])
@pytest.mark.parametrize("announced", [True, False], ids=["announced", "in chunks"])
def test_a_body_of_1_gb_is_refused_at_once(
    running: RunningGateway, media_type: str, announced: bool
) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", running.port)
    with contextlib.closing(connection), growth(running) as grown:
        began = used(running)
        connection.putrequest("POST", "/v1/images/edits")
        connection.putheader("Content-Type", media_type)
        size = ("Content-Length", str(10**9)) if announced else ("Transfer-Encoding", "chunked")
        connection.putheader(*size)
        connection.endheaders()
        sent = pour(connection, announced)
        answer = connection.getresponse()
        took = used(running) - began
        content = json.loads(answer.read())
    assert answer.status == 413
    assert content["error"]["code"] == "body_too_large"
    assert sent < 100e6
    assert took < REFUSED_WITHIN_S
    assert max(grown) < MEMORY


def pour(connection: http.client.HTTPConnection, announced: bool) -> int:
    """Send a body until an answer comes; how much was sent."""

    def framed(data: bytes) -> memoryview:
        return memoryview(data if announced else b"%x\r\n%b\r\n" % (len(data), data))

    part = framed(b"x" * 2**20)
    left = framed(b'--x\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n')
    sent, sock = 0, connection.sock
    assert sock
    sock.setblocking(False)
    while sent < 10**9:
        answered, ready, _ = select.select([sock], [sock], [], PATIENCE_S)
        if answered or not ready:
            break
        try:
            taken = sock.send(left)
        except OSError:
            break
        sent += taken
        left = left[taken:] or part
    sock.settimeout(PATIENCE_S)
    return sent


class growth:  # noqa: N801
    """By how many bytes a gateway's memory has grown, sampled as long as the body takes."""

    def __init__(self, running: RunningGateway) -> None:
        self._process = psutil.Process(running.process.pid)
        self._ending = threading.Event()
        self._samples: list[int] = []

    def __enter__(self) -> list[int]:
        before = self._process.memory_info().rss

        def sample() -> None:
            while not self._ending.wait(0.005):
                self._samples.append(self._process.memory_info().rss - before)

        self._thread = threading.Thread(target=sample)
        self._samples.append(0)
        self._thread.start()
        return self._samples

    def __exit__(self, *error: object) -> None:
        self._ending.set()
        self._thread.join()

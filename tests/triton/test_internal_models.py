"""What a stranger can do who reaches Triton's port: nothing to others, and nothing stays behind."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http

from bench.server import Server
from tessera.shared.board import Board
from tessera_client import Client, Control
from tests.samples.jobs import in_company
from tests.samples.raw_http import send
from tests.samples.raw_requests import error_of
from tests.samples.servers import shared_memory_of
from tests.samples.waiting import comes

SENTENCE = "this model takes requests from the server's own models only"
PLAN: dict[str, Any] = {
    "slot": 0,
    "ticket": 1,
    "job_id": "forged",
    "seed": 0,
    "steps": 5,
    "guidance": 1.0,
    "width": 64,
    "height": 64,
    "scheduler": "euler",
    "started": 0.0,
    "adapters": [],
    "controls": [],
    "loras": [],
    "prepared": [],
    "shapes": {},
}
CONTROL = {"name": "edges", "scale": 1.0, "start": 0.0, "end": 1.0}
PLANS = {
    "scheduler": PLAN | {"scheduler": "x"},
    "steps": PLAN | {"steps": 0},
    "slot": PLAN | {"slot": 99_999},
    "key": PLAN | {"extra": 1},
    "guidance": PLAN | {"guidance": float("nan")},
    "first step": PLAN | {"first_step": -3},
    "control": PLAN | {"controls": [CONTROL]},
    "list": [1],
}
TENSORS: dict[str, Any] = {
    "TEXT": np.zeros((1, 1, 77, 96), np.float32),
    "POOLED": np.zeros((1, 1, 1), np.float32),
    "CLEAN": np.zeros((1, 1, 1, 1), np.float32),
    "ACTIVE": np.zeros((1, 1, 1), np.uint8),
    "MASKED": np.zeros((1, 1, 1, 1), np.float32),
    "CONTROL": np.zeros((1, 1, 1, 1, 3), np.uint8),
}
DECODED = {
    "LATENTS": np.zeros((1, 4, 16, 16), np.float32),
    "STATS": np.array([[b"{}"]], object),
}


def refused(
    server: Server, protocol: str, model: str, arrays: dict[str, Any], **options: Any
) -> str:
    """The sentence with which a request is refused as invalid."""
    error = error_of(server, protocol, model, arrays, **options)
    assert str(error.status()) in ("400", "StatusCode.INVALID_ARGUMENT")
    return str(error.message())


def running(server: Server) -> int:
    """Jobs on the server's board that have not ended."""
    (board,) = [each for each in shared_memory_of(server) if (each / "board").exists()]
    return Board(board / "board").running()


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_forged_plans_are_refused_in_one_sentence(
    server: Server, protocol: str, http_client: Client
) -> None:
    before = http_client.generate("a red circle", seed=1, steps=4)
    options = {"sequence_id": 7, "sequence_start": True}
    for plan in PLANS.values():
        text = {"PLAN": np.array([[json.dumps(plan).encode()]], object)}
        ticked = TENSORS | {"QUEUED_TICK": np.array([[0]], np.int64)}
        assert SENTENCE in refused(server, protocol, "render", text | TENSORS)
        assert SENTENCE in refused(server, protocol, "decode", text | DECODED)
        assert SENTENCE in refused(server, protocol, "denoise", text | ticked, **options)
    after = http_client.generate("a red circle", seed=1, steps=4)
    assert (np.asarray(before.image) == np.asarray(after.image)).all()
    comes(lambda: running(server) == 0)  # jobs of other tests may be ending


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_strangers_get_no_previews_and_change_no_controls(
    server: Server, protocol: str, http_client: Client
) -> None:
    image = np.zeros((128, 128, 3), np.uint8)
    http_client.generate("a", steps=2, controls=[Control("edges", image)])  # loads it
    latents = {"LATENTS": DECODED["LATENTS"]}
    assert SENTENCE in refused(server, protocol, "decode", latents)
    tell = {
        "KEYS": np.array([[4]], np.int64),
        "IMAGE": image[None],
        "TEXT": np.zeros((1, 2, 77, 96), np.float32),
    }
    assert SENTENCE in refused(server, protocol, "controlnet_edges", tell)


def test_parameters_that_are_no_text_harm_nobody(server: Server, http_client: Client) -> None:
    """Triton passes such bytes on. They reach `denoise` together with others' jobs."""
    arrays = TENSORS | {"QUEUED_TICK": np.array([[0]], np.int64)}
    kinds = {"float32": "FP32", "uint8": "UINT8", "int64": "INT64"}
    inputs: list[dict[str, Any]] = [
        {
            "name": name,
            "datatype": kinds[str(array.dtype)],
            "shape": array.shape,
            "data": array.ravel().tolist(),
        }
        for name, array in arrays.items()
    ]
    inputs.append({"name": "PLAN", "datatype": "BYTES", "shape": [1, 1], "data": ["x"]})
    parameters = {"sequence_id": 8, "sequence_start": True, "note": "BYTES"}
    body = json.dumps({"inputs": inputs, "parameters": parameters}).encode()
    with in_company(http_client):
        for _ in range(5):
            spoiled = body.replace(b'"BYTES"}', b'"\xff"}')
            answer = send(server.http, "POST", "/v2/models/denoise/infer", spoiled)
            assert (answer.status, SENTENCE in answer.error) == (400, True), answer


def test_direct_calls_of_encode_leave_no_jobs_behind(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They may be lost by a queue as well; nobody would take them."""
    from tessera.shared import ends, rows

    comes(lambda: running(server) == 0)
    client = tritonclient.http.InferenceServerClient(f"localhost:{server.http_port}")
    prompt = tritonclient.http.InferInput("PROMPT", [1, 1], "BYTES")
    prompt.set_data_from_numpy(np.array([[b"a"]], object))
    for _ in range(3):
        client.infer("encode", [prompt])
    assert running(server) == 3
    monkeypatch.setattr(rows, "LOST_S", 0.0)
    monkeypatch.setattr(ends, "SWEEP_S", -1.0)
    comes(lambda: running(server) == 0)


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_a_strangers_word_is_worth_nothing(server: Server, protocol: str) -> None:
    for word in (True, "true", "0" * 32):
        options = {"parameters": {"tessera_called": word}}
        latents = {"LATENTS": DECODED["LATENTS"]}
        assert SENTENCE in refused(server, protocol, "decode", latents, **options)

"""What a real server answers to requests that are not right, while others are in flight."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from bench.server import Server
from tessera.contract import MAX_SEED
from tessera.errors import InvalidInput
from tessera_client import Client, Control, Lora
from tests.samples.raw_requests import error_of

BAD: dict[str, tuple[str, dict[str, Any], str]] = {
    "empty prompt": ("", {}, "PROMPT is ''; accepted: 1 to 2000 characters"),
    "10,000 characters": ("x" * 10_000, {}, "(10000 characters)"),
    "no steps": ("a", {"steps": 0}, "STEPS is 0; accepted: an integer from 1 to 1000"),
    "1001 steps": ("a", {"steps": 1001}, "STEPS is 1001; accepted: an integer from 1 to 1000"),
    "negative steps": ("a", {"steps": -1}, "STEPS is -1; accepted: an integer from 1 to 1000"),
    "guidance NaN": ("a", {"guidance": float("nan")}, "GUIDANCE is nan; accepted: a number"),
    "width 100": ("a", {"width": 100}, "WIDTH is 100; accepted: a multiple of 8 from 64 to 256"),
    "height 264": ("a", {"height": 264}, "HEIGHT is 264; accepted: a multiple of 8"),
    "negative seed": ("a", {"seed": -1}, "SEED is -1; accepted: an integer from 0"),
    "scheduler": ("a", {"scheduler": "magic"}, "SCHEDULER is 'magic'; accepted: euler, "),
    "lora": ("a", {"loras": [Lora("x")]}, "LORAS[0].name is 'x'; accepted: halved, night, outline"),
    "control": (
        "a",
        {"controls": [Control("x", np.zeros((64, 64, 3), np.uint8))]},
        "CONTROLS[0].name is 'x'; accepted: ",
    ),
}


@pytest.mark.parametrize(("prompt", "options", "sentence"), BAD.values(), ids=BAD.keys())
def test_bad_values_are_answered_with_field_value_and_what_is_accepted(
    client: Client, prompt: str, options: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(InvalidInput) as caught:
        client.generate(prompt, **options)
    assert sentence in str(caught.value)
    assert "ensemble" not in str(caught.value)


@pytest.mark.parametrize("seed", [0, MAX_SEED])
def test_the_ends_of_the_seed_range_are_fine(client: Client, seed: int) -> None:
    assert client.generate("a", seed=seed, steps=1).info.seed == seed


def raw(server: Server, protocol: str, **arrays: np.ndarray[Any, Any]) -> InferenceServerException:
    """The error of a request to `generate`."""
    return error_of(server, protocol, "generate", arrays)


PROMPT = np.array([[b"a red circle"]], object)
WIRE: dict[str, tuple[dict[str, np.ndarray[Any, Any]], list[str]]] = {
    "steps as int64": (
        {"PROMPT": PROMPT, "STEPS": np.array([[3]], np.int64)},
        ["STEPS", "INT64", "INT32"],
    ),
    "two prompts": ({"PROMPT": np.array([[b"a", b"b"]], object)}, ["PROMPT", "[-1,1]", "[1,2]"]),
    "batch of two": ({"PROMPT": np.array([[b"a"], [b"b"]], object)}, ["batch"]),
    "no prompt": (
        {"STEPS": np.array([[3]], np.int32)},
        [],
    ),
    "unknown input": ({"PROMPT": PROMPT, "STEPZ": np.array([[3]], np.int32)}, ["STEPZ"]),
    "invalid UTF-8": (
        {"PROMPT": np.array([[b"a\xff\xfe"]], object)},
        ["PROMPT is not UTF-8 at byte 1", "accepted: at most 2000 characters of UTF-8"],
    ),
    "LORAS not JSON": (
        {"PROMPT": PROMPT, "LORAS": np.array([[b"[{"]], object)},
        ["LORAS is '[{'", "accepted: a JSON list of at most 8 objects with the keys name, weight"],
    ),
    "CONTROLS of the wrong shape": (
        {"PROMPT": PROMPT, "CONTROLS": np.array([[b'{"name": "x"}']], object)},
        ["CONTROLS is", "accepted: a JSON list"],
    ),
    "an image without CONTROLS": (
        {"PROMPT": PROMPT, "CONTROL_IMAGES": np.zeros((1, 1, 64, 64, 3), np.uint8)},
        ["CONTROL_IMAGES has 1 image; accepted: one image for each element", "which has none"],
    ),
    "a grey image": (
        {"PROMPT": PROMPT, "CONTROL_IMAGES": np.zeros((1, 1, 64, 64, 1), np.uint8)},
        ["CONTROL_IMAGES", "[1,1,64,64,1]"],
    ),
    "weight NaN": (
        {"PROMPT": PROMPT, "LORAS": np.array([[b'[{"name":"x","weight":NaN}]']], object)},
        ["LORAS[0].weight is nan"],
    ),
}


@pytest.mark.parametrize("protocol", ["http", "grpc"])
@pytest.mark.parametrize(("arrays", "parts"), WIRE.values(), ids=WIRE.keys())
def test_bad_tensors_are_answered_as_invalid(
    server: Server, protocol: str, arrays: dict[str, np.ndarray[Any, Any]], parts: list[str]
) -> None:
    error = raw(server, protocol, **arrays)
    assert str(error.status()) in ("400", "StatusCode.INVALID_ARGUMENT")
    for part in parts:
        assert part in error.message()


def test_nobody_can_hang_or_disturb_denoise_by_calling_it(server: Server) -> None:
    client = tritonclient.http.InferenceServerClient(f"localhost:{server.http_port}")
    plan = {
        "slot": 3,
        "ticket": 999_999,
        "job_id": "forged",
        "seed": 0,
        "steps": 5,
        "guidance": 1.0,
        "width": 64,
        "height": 64,
        "scheduler": "euler",
        "started": 0.0,
    }
    for text in (json.dumps(plan).encode(), b"{}", b"nonsense"):
        arrays = {
            "PLAN": np.array([[text]], object),
            "TEXT": np.zeros((1, 1, 77, 96), np.float32),
            "POOLED": np.zeros((1, 1, 1), np.float32),
            "QUEUED_TICK": np.array([[0]], np.int64),
        }
        tensors = []
        for name, array in arrays.items():
            tensor = tritonclient.http.InferInput(
                name, list(array.shape), np_to_triton_dtype(array.dtype)
            )
            tensor.set_data_from_numpy(array)
            tensors.append(tensor)
        with pytest.raises(InferenceServerException):
            client.infer("denoise", tensors, sequence_id=7, sequence_start=True)


def test_requests_in_flight_finish_unchanged(server: Server, http_client: Client) -> None:
    alone = http_client.generate("a blue star", seed=1, steps=30)
    with ThreadPoolExecutor(4) as pool:
        flying = [
            pool.submit(http_client.generate, "a blue star", seed=1, steps=30) for _ in range(3)
        ]
        for prompt, options, _ in BAD.values():
            with pytest.raises(InvalidInput):
                http_client.generate(prompt, **options)
        raw(server, "http", PROMPT=np.array([[b"\xff"]], object))
        pictures = [np.asarray(f.result().image, np.int16) for f in flying]
    for picture in pictures:
        assert np.abs(picture - np.asarray(alone.image, np.int16)).max() <= 1

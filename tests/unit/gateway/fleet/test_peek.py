"""A peek at a request's bytes sees what NVIDIA's own parsers see."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tritonclient import grpc, http
from tritonclient.grpc import service_pb2

from tessera.contract import MAX_JOB_ID
from tessera.contract.crops import Box
from tessera.requests.edit import template_id
from tessera.requests.frames import extended, filled_frame
from tessera_gateway.fleet import wire
from tessera_gateway.fleet.peek import Peek, peek, peek_grpc, peek_http, peek_values
from tessera_gateway.fleet.wire import Tensor

DTYPES = {np.int32: "INT32", np.float32: "FP32", np.uint8: "UINT8", np.object_: "BYTES"}
NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8)
PROMPTS = st.lists(NAMES, min_size=1, max_size=9)
SIDES = st.integers(1, 24)
LORAS = st.lists(
    st.fixed_dictionaries({"name": NAMES}, optional={"weight": st.integers(-4, 4)}), max_size=3
)


@st.composite
def edits(draw: st.DrawFn) -> dict[str, np.ndarray[Any, Any]]:
    """The inputs of an edit, any of the optional ones left out, in any order."""
    height, width = draw(SIDES), draw(SIDES)
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    values: dict[str, Any] = {
        "PROMPT": draw(NAMES),
        "STEPS": np.int32(draw(st.integers(-(2**31), 2**31 - 1))),
        "STRENGTH": np.float32(draw(st.floats(0, 1, width=32))),
        "GUIDANCE": np.float32(draw(st.floats(0, 100, width=32))),
        "SCHEDULER": draw(NAMES),
        "MODE": draw(NAMES),
        "JOB_ID": draw(NAMES),
        "LORAS": json.dumps(draw(LORAS)),
        "CONTROLS": json.dumps([{"name": name} for name in draw(st.lists(NAMES, max_size=3))]),
        "EDIT_QUALITY": draw(NAMES),
        "MASK_KIND": draw(st.sampled_from(["hard", "soft", "x"])),
        "REGION_PROMPTS": np.array([p.encode() for p in draw(PROMPTS)], np.object_),
        "REGION_MASKS": rng.integers(0, 256, (1, height, width), np.uint8),
        "EXTEND": np.array(draw(st.lists(st.integers(-1, 9), min_size=4, max_size=4)), np.int32),
        "PADDING_MASK_CROP": np.int32(draw(st.integers(-1, 40))),
        "IMAGE": rng.integers(0, 256, (height, width, 3), np.uint8),
        "MASK": rng.integers(0, 256, (height, width), np.uint8),
    }
    names = draw(st.permutations(list(values)))
    kept = names[: draw(st.integers(1, len(names)))]
    return {name: _array(values[name]) for name in kept}


def _array(value: Any) -> np.ndarray[Any, Any]:
    """With the batch dimension."""
    if isinstance(value, str):
        return np.array([[value.encode()]], np.object_)
    array = np.atleast_1d(np.asarray(value))
    return array[None]


def _dtype(array: np.ndarray[Any, Any]) -> str:
    return DTYPES[array.dtype.type]


def expected(inputs: dict[str, np.ndarray[Any, Any]]) -> Peek:
    """What the arrays say."""
    texts = {n: a.item(0).decode() for n, a in inputs.items() if a.dtype == np.object_}
    numbers = {n.lower(): a.item() for n, a in inputs.items() if a.size == 1 and a.dtype != "O"}
    numbers = {n: v for n, v in numbers.items() if n in ("steps", "strength", "guidance")}
    if "strength" in numbers:
        numbers["strength"] = float(str(np.float32(numbers["strength"])))
    loras = json.loads(texts.get("LORAS", "[]"))
    controls = json.loads(texts.get("CONTROLS", "[]"))
    room = inputs["EXTEND"][0] if "EXTEND" in inputs else np.zeros(4, int)
    extends = "EXTEND" in inputs and bool((room >= 0).all())
    padding = inputs["PADDING_MASK_CROP"].item() if "PADDING_MASK_CROP" in inputs else -1
    edited = _edited(inputs, room)
    image = padding < 0 and "IMAGE" in inputs
    height, width = (None, None) if edited is None or padding >= 0 else edited.shape
    return Peek(
        "edit",
        **numbers,
        job=texts.get("JOB_ID", ""),
        mode=texts.get("MODE", ""),
        scheduler=texts.get("SCHEDULER", ""),
        quality=texts.get("EDIT_QUALITY", ""),
        soft=texts.get("MASK_KIND") == "soft",
        regions=min(inputs["REGION_PROMPTS"].size, 7) if "REGION_PROMPTS" in inputs else 0,
        template=template_id(_filled_up(inputs["IMAGE"][0], room)) if image else "",
        image=image,
        mask=None if edited is None else share_of(edited),
        room=cast(Box, tuple(map(int, room))) if extends else None,
        padding=padding if padding >= 0 else None,
        width=width,
        height=height,
        loras=tuple(sorted((e["name"], float(e.get("weight", 1))) for e in loras)),
        controls=tuple(sorted({e["name"] for e in controls})),
    )


def _edited(
    inputs: dict[str, np.ndarray[Any, Any]], room: np.ndarray[Any, Any]
) -> np.ndarray[Any, Any] | None:
    """Where the picture, with its room, may change."""
    least = 1 if "MASK_KIND" in inputs and inputs["MASK_KIND"].item() == b"soft" else 128
    extends = "EXTEND" in inputs and (room >= 0).all()
    if "MASK" in inputs:
        edited = inputs["MASK"][0] >= least
    elif "IMAGE" in inputs:
        edited = np.full(inputs["IMAGE"].shape[1:3], not extends)
    else:
        return None
    for mask in inputs.get("REGION_MASKS", [[]])[0]:
        edited = edited | (mask >= least)
    left, top, right, bottom = room if extends else (0, 0, 0, 0)
    return np.pad(edited, ((top, bottom), (left, right)), constant_values=True)


def share_of(edited: np.ndarray[Any, Any]) -> float:
    """Once it is filled up."""
    size = (edited.shape[1], edited.shape[0])
    filled_up = filled_frame(size, 0).masked(edited * np.uint8(255), soft=False)
    return float((filled_up > 0).mean())


def _filled_up(image: np.ndarray[Any, Any], room: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """With that room, and up to multiples of 8."""
    left, top, right, bottom = room if (room >= 0).all() else (0, 0, 0, 0)
    larger, _ = extended(
        image, np.zeros((1, *image.shape[:2]), np.uint8), (left, top, right, bottom)
    )
    return filled_frame((larger.shape[1], larger.shape[0]), 0).shown(larger)


def said(found: Peek) -> Peek:
    """Without the mask's squares, which `test_masks` looks at."""
    return replace(found, edited=None)


def grpc_request(inputs: dict[str, np.ndarray[Any, Any]]) -> bytes:
    """As tritonclient writes it."""
    request = service_pb2.ModelInferRequest(model_name="edit", id="x")
    request.parameters["priority"].int64_param = 3
    for name, array in inputs.items():
        tensor = grpc.InferInput(name, array.shape, _dtype(array))
        tensor.set_data_from_numpy(array)
        request.inputs.append(tensor._get_tensor())
        request.raw_input_contents.append(tensor._get_content())
    return request.SerializeToString()


def typed_request(inputs: dict[str, np.ndarray[Any, Any]]) -> bytes:
    """As other clients may: numbers and texts inside the inputs."""
    request = service_pb2.ModelInferRequest(model_name="edit")
    for name, array in inputs.items():
        tensor = request.inputs.add(name=name, datatype=_dtype(array), shape=array.shape)
        fields = {"INT32": "int_contents", "FP32": "fp32_contents"}
        fields |= {"UINT8": "uint_contents", "BYTES": "bytes_contents"}
        getattr(tensor.contents, fields[_dtype(array)]).extend(array.reshape(-1).tolist())
    return request.SerializeToString()


@given(edits())
def test_a_grpc_request(inputs: dict[str, np.ndarray[Any, Any]]) -> None:
    assert said(peek_grpc(grpc_request(inputs))) == expected(inputs)


@given(edits())
def test_a_grpc_request_with_typed_contents(inputs: dict[str, np.ndarray[Any, Any]]) -> None:
    assert said(peek_grpc(typed_request(inputs))) == expected(inputs)


@pytest.mark.parametrize("binary", [True, False], ids=["binary", "json"])
@settings(deadline=None)
@given(data=st.data())
def test_an_http_request(binary: bool, data: st.DataObject) -> None:
    inputs = data.draw(edits())
    tensors = []
    for name, array in inputs.items():
        tensor = http.InferInput(name, list(array.shape), _dtype(array))
        tensor.set_data_from_numpy(array, binary_data=binary)
        tensors.append(tensor)
    body, head = http.InferenceServerClient.generate_request_body(tensors)
    assert said(peek_http("edit", head, body)) == expected(inputs)


@given(edits())
def test_a_job_that_is_named_on_the_way(inputs: dict[str, np.ndarray[Any, Any]]) -> None:
    inputs.pop("JOB_ID", None)
    named = wire.with_text(grpc_request(inputs), "JOB_ID", "jöb")
    request = service_pb2.ModelInferRequest.FromString(named)
    assert [i.name for i in request.inputs] == [*inputs, "JOB_ID"]
    assert request.inputs[-1].shape == [1, 1]
    assert request.raw_input_contents[-1] == b"\x04\0\0\0" + "jöb".encode()
    assert peek_grpc(named).job == "jöb"


def test_a_request_that_is_written_here() -> None:
    written = wire.request_of("jobs", {"ACTION": "load"})
    request = service_pb2.ModelInferRequest.FromString(written)
    assert (request.model_name, request.inputs[0].datatype) == ("jobs", "BYTES")
    assert peek_grpc(written) == Peek("jobs", action="load")


@given(st.binary(max_size=64))
def test_bytes_that_are_no_request(data: bytes) -> None:
    """Either they are one by chance, or they are called malformed; nothing else happens."""
    try:
        found = peek_grpc(data)
    except wire.Malformed:
        return
    assert isinstance(found, Peek)


@given(edits(), st.data())
def test_a_request_that_is_cut_short(
    inputs: dict[str, np.ndarray[Any, Any]], data: st.DataObject
) -> None:
    whole = grpc_request(inputs)
    cut = whole[: data.draw(st.integers(0, len(whole)))]
    try:
        service_pb2.ModelInferRequest.FromString(cut)
    except Exception:
        with pytest.raises(wire.Malformed):
            peek_grpc(cut)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("LORAS", "[1]"),
        ("LORAS", "{"),
        ("LORAS", '[{"name": "x", "weight": null}]'),
        ("CONTROLS", "[" * 100_000),
        ("CONTROLS", "7"),
    ],
)
def test_what_cannot_be_read_is_left_to_the_worker(name: str, value: str) -> None:
    assert peek_grpc(wire.request_of("edit", {name: value})) == Peek("edit")


@pytest.mark.parametrize("length", [64, 65, 60_000])
def test_an_id_that_no_worker_accepts_is_not_kept(length: int) -> None:
    job = "j" * length
    found = peek_grpc(wire.request_of("generate", {"JOB_ID": job}))
    assert found == Peek("generate", job=job if length == MAX_JOB_ID else "")


def test_shared_memory_shows() -> None:
    tensor = grpc.InferInput("MASK", [1, 8, 8], "UINT8")
    tensor.set_shared_memory("region", 64)
    request = service_pb2.ModelInferRequest(model_name="edit", inputs=[tensor._get_tensor()])
    assert wire.read_inference(request.SerializeToString()).shared
    assert not wire.read_inference(wire.request_of("jobs", {"ACTION": "load"})).shared


def test_values_of_the_generate_extension() -> None:
    values = {
        "PROMPT": "a circle",
        "STEPS": 7,
        "WIDTH": 64,
        "GUIDANCE": 1,
        "SCHEDULER": "euler",
        "LORAS": '[{"name": "night"}]',
        "JOB_ID": "j",
        "HEIGHT": "tall",
        "SEED": 2**62,
        "priority": 2**40,
    }
    found = peek_values("generate", values)
    assert (found.steps, found.width, found.height) == (7, 64, None)
    assert (found.guidance, found.scheduler, found.job) == (1.0, "euler", "j")
    assert found.loras == (("night", 1.0),)
    assert peek_values("generate", {"STEPS": True, "WIDTH": None, "LORAS": [1]}).loras == ()


def test_an_edit_without_a_mask_may_change_all_of_its_image() -> None:
    image = Tensor("IMAGE", (1, 24, 40, 3), bytes(24 * 40 * 3))
    found = peek("edit", [image])
    assert (found.mask, found.width, found.height) == (1.0, 40, 24)
    assert peek("edit", [Tensor("IMAGE", (24,), b"")]).mask is None
    assert peek("templates", [image]).mask is None

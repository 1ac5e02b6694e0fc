"""The JSON of an inference: what is refused, and that what Triton gets is only what was checked."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera.contract import MODELS
from tessera.errors import InvalidInput
from tessera_gateway.kserve.head import read_inference
from tessera_gateway.kserve.limits import LIMITS, Limits

PROMPT = {"name": "PROMPT", "datatype": "BYTES", "shape": [1, 1], "data": ["a circle"]}
IMAGE = {
    "name": "IMAGE",
    "datatype": "UINT8",
    "shape": [1, 2, 2, 3],
    "parameters": {"binary_data_size": 12},
}
MASK = {"name": "MASK", "datatype": "UINT8", "shape": [1, 2, 2], "data": [[[0, 255], [255, 0]]]}
EDIT: dict[str, Any] = {
    "id": "1",
    "inputs": [PROMPT, IMAGE, MASK],
    "outputs": [{"name": "IMAGE", "parameters": {"binary_data": True}}, {"name": "INFO"}],
    "parameters": {"priority": 1, "lora_policy": "exact"},
}


def changed(*path: str | int, value: Any) -> bytes:
    """`EDIT` with another value somewhere."""
    content = copy.deepcopy(EDIT)
    place: Any = content
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return json.dumps(content).encode()


def test_a_head_is_written_anew() -> None:
    read = read_inference("edit", json.dumps(EDIT).encode(), LIMITS)
    assert read.coming == 12
    assert [each.data for each in read.inputs] == [b"\x08\0\0\0a circle", None, b"\0\xff\xff\0"]
    assert json.loads(read.to_json()) == {
        "id": "1",
        "inputs": [
            {
                "name": name,
                "datatype": datatype,
                "shape": shape,
                "parameters": {"binary_data_size": size},
            }
            for name, datatype, shape, size in (
                ("PROMPT", "BYTES", [1, 1], 12),
                ("IMAGE", "UINT8", [1, 2, 2, 3], 12),
                ("MASK", "UINT8", [1, 2, 2], 4),
            )
        ],
        "outputs": [
            {"name": "IMAGE", "parameters": {"binary_data": True}},
            {"name": "INFO", "parameters": {"binary_data": False}},
        ],
        "parameters": {"priority": 1, "lora_policy": "exact"},
    }


def test_the_job_gets_an_id_unless_it_has_one() -> None:
    read = read_inference("edit", json.dumps(EDIT).encode(), LIMITS)
    named = read.named("mine")
    assert named.inputs[-1].data == b"\x04\0\0\0mine"
    assert named.named("another") == named
    about = {"inputs": [{**PROMPT, "name": "ACTION"}]}
    listed = read_inference("adapters", json.dumps(about).encode(), LIMITS)
    assert listed.named("mine") == listed


def test_of_keys_that_come_twice_triton_gets_what_was_checked() -> None:
    text = json.dumps({"inputs": [PROMPT]})[:-1].encode()
    text += (
        b', "inputs": [{"name": "PROMPT", "datatype": "BYTES", "shape": [1, 1], "data": ["x"]}]}'
    )
    head = read_inference("generate", text, LIMITS).to_json()
    assert head.count(b'"inputs"') == 1


BAD: dict[str, tuple[bytes, str]] = {
    "no JSON": (b"{'inputs'", "the JSON cannot be read"),
    "nothing": (b"", "the JSON cannot be read"),
    "behind it": (json.dumps(EDIT).encode() + b"x", "the JSON cannot be read"),
    "a list": (b"[]", "the JSON has a wrong value (Expected `object`, got `array`)"),
    "bytes": (b'{"inputs": "\xff"}', "the JSON has a wrong value|inputs has a wrong value"),
    "nested inputs": (b'{"inputs":' + b"[" * 200_000, "inputs[0] has a wrong value"),
    "nested unknown": (b'{"x":' + b"[" * 200_000, "the JSON is nested too deeply"),
    "nested data": (
        changed("inputs", 0, "data", value="@").replace(b'"@"', b"[" * 9000 + b"]" * 9000),
        "nested too deeply",
    ),
    "objects": (b'{"inputs":[' + b"{}," * 5000 + b"{}]}", "has too many objects"),
    "no inputs": (changed("inputs", value=[]), "inputs are missing; accepted: CLIP_SKIP,"),
    "null inputs": (changed("inputs", value=None), "inputs has a wrong value"),
    "unknown input": (
        changed("inputs", 0, "name", value="PLAN"),
        "inputs[0].name is 'PLAN'; accepted: CLIP_SKIP,",
    ),
    "input twice": (changed("inputs", 1, value=PROMPT), "inputs[1].name names PROMPT again"),
    "datatype": (
        changed("inputs", 0, "datatype", value="FP64"),
        "inputs[0].datatype is 'FP64'; accepted: BYTES for PROMPT",
    ),
    "datatype of null": (changed("inputs", 0, "datatype", value=None), "inputs[0].datatype has a"),
    "huge shape": (
        changed("inputs", 0, "shape", value=[1, 2**40]),
        "inputs[0].shape is [1, 1099511627776]; accepted: [1, 1]",
    ),
    "huge side": (
        changed("inputs", 1, "shape", value=[1, 2**40, 2, 3]),
        "accepted: [1, n, n, 3], n from 1 to 65536",
    ),
    "huge product": (
        changed("inputs", 1, "shape", value=[1, 65536, 65536, 3]),
        "at most 268435456 values",
    ),
    "overflow": (changed("inputs", 1, "shape", value=[1, 2**63, 2**63, 3]), "n from 1 to 65536"),
    "negative": (changed("inputs", 1, "shape", value=[1, -2, -2, 3]), "n from 1 to 65536"),
    "zero": (changed("inputs", 1, "shape", value=[1, 0, 0, 3]), "n from 1 to 65536"),
    "fraction": (changed("inputs", 1, "shape", value=[1, 2.0, 2, 3]), "n from 1 to 65536"),
    "truth": (changed("inputs", 0, "shape", value=[True, 1]), "n from 1 to 65536"),
    "shape of null": (changed("inputs", 0, "shape", value=None), "shape is None"),
    "shape of texts": (changed("inputs", 0, "shape", value=["1", "1"]), "n from 1 to 65536"),
    "rank": (changed("inputs", 0, "shape", value=[1]), "accepted: [1, 1]"),
    "batch": (changed("inputs", 0, "shape", value=[2, 1]), "accepted: [1, 1]"),
    "long shape": (changed("inputs", 0, "shape", value=[1] * 99_999), "shape has 299997 bytes"),
    "size": (
        changed("inputs", 1, "parameters", "binary_data_size", value=11),
        "inputs[1].parameters.binary_data_size is 11; accepted: 12 bytes, as the shape and UINT8",
    ),
    "size of a text": (
        changed("inputs", 1, "parameters", "binary_data_size", value="12"),
        "binary_data_size is '12'",
    ),
    "size of a prompt": (
        changed("inputs", 0, value={**PROMPT, "parameters": {"binary_data_size": 3}, "data": None}),
        "accepted: 4 to 65540 bytes",
    ),
    "both": (
        changed("inputs", 0, "parameters", value={"binary_data_size": 12}),
        "is given as well as data",
    ),
    "neither": (changed("inputs", 1, "parameters", value={}), "inputs[1].data is missing"),
    "shared memory": (
        changed("inputs", 1, "parameters", value={"shared_memory_region": "triton", "x": 1}),
        "inputs[1].parameters ask for shared memory (shared_memory_region); accepted: tensors in",
    ),
    "shared memory of an output": (
        changed("outputs", 0, "parameters", value={"shared_memory_byte_size": 1}),
        "outputs[0].parameters ask for shared memory",
    ),
    "classification": (
        changed("outputs", 1, "parameters", value={"classification": 1}),
        "outputs[1].parameters have the key 'classification'; accepted: binary_data",
    ),
    "binary_data": (changed("outputs", 0, "parameters", "binary_data", value=1), "accepted: true"),
    "parameters of a list": (changed("inputs", 1, "parameters", value=[1]), "an object"),
    "unknown output": (changed("outputs", 0, "name", value="LATENTS"), "accepted: IMAGE, INFO"),
    "output twice": (changed("outputs", 0, "name", value="INFO"), "names INFO again"),
    "60,000 parameters": (
        changed("parameters", value={f"p{n}": n for n in range(60_000)}),
        "parameters has",
    ),
    "40 parameters": (
        changed("parameters", value={f"p{n}": n for n in range(40)}),
        "parameters have 40 keys; accepted: at most 32",
    ),
    "long parameter": (changed("parameters", value={"p" * 99: 1}), "names of 1 to 64 characters"),
    "parameter of null": (changed("parameters", "priority", value=None), "parameters.priority is"),
    "priority": (
        changed("parameters", "priority", value="high"),
        "parameters.priority is 'high'; accepted: an integer",
    ),
    "timeout": (changed("parameters", "timeout", value=-1), "parameters.timeout is -1"),
    "nested parameter": (changed("parameters", "x", value={"y": 1}), "parameters.x is {'y': 1}"),
    "big parameter": (changed("parameters", "x", value=2**64), "an integer of 64 bits"),
    "Triton's parameter": (changed("parameters", "triton_x", value=1), "belongs to Triton itself"),
    "id": (changed("id", value=7), "id is 7; accepted: a text"),
    "lone surrogate": (changed("inputs", 0, "data", value=["@"]).replace(b"@", rb"\ud800"), "read"),
    "two texts": (changed("inputs", 0, "data", value=["a", "b"]), "accepted: one text"),
    "number for a text": (changed("inputs", 0, "data", value=[7]), "is 7; accepted: one text"),
    "too few": (changed("inputs", 2, "data", value=[1, 2, 3]), "has 3 values; accepted: 4"),
    "too large": (changed("inputs", 2, "data", value=[1, 2, 3, 256]), "accepted: values of UINT8"),
    "a fraction": (changed("inputs", 2, "data", value=[1, 2, 3, 0.5]), "got `float`"),
    "texts for numbers": (changed("inputs", 2, "data", value=["1"] * 4), "got `str`"),
    "long text": (changed("inputs", 0, "data", value=["x" * 70_000]), "has 70004 bytes of JSON"),
}


@pytest.mark.parametrize(("text", "parts"), BAD.values(), ids=BAD.keys())
def test_bad_ones_are_refused_with_a_sentence(text: bytes, parts: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        read_inference("edit", text, LIMITS)
    sentence = str(caught.value)
    assert any(part in sentence for part in parts.split("|")), sentence
    assert "; accepted: " in sentence
    assert len(sentence) < 1000
    assert "\n" not in sentence


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)
PLACES = st.sampled_from(
    [
        ("inputs",),
        ("inputs", 1),
        ("inputs", 1, "name"),
        ("inputs", 1, "shape"),
        ("inputs", 1, "shape", 1),
        ("inputs", 1, "datatype"),
        ("inputs", 1, "parameters"),
        ("inputs", 1, "parameters", "binary_data_size"),
        ("inputs", 2, "data"),
        ("outputs",),
        ("outputs", 0, "name"),
        ("outputs", 0, "parameters"),
        ("parameters",),
        ("parameters", "priority"),
        ("id",),
        ("more",),
    ]
)


@given(place=PLACES, value=JSON_VALUES)
def test_whatever_a_field_holds_is_refused_or_safe(
    place: tuple[str | int, ...], value: Any
) -> None:
    check_safe(changed(*place, value=value))


@given(data=st.data())
def test_a_damaged_text_is_refused_or_safe(data: st.DataObject) -> None:
    text = bytearray(json.dumps(EDIT).encode())
    for _ in range(data.draw(st.integers(1, 5))):
        start = data.draw(st.integers(0, len(text)))
        end = start + data.draw(st.integers(0, 10))
        text[start:end] = data.draw(st.binary(max_size=5))
    check_safe(bytes(text))


def check_safe(text: bytes) -> None:
    """It is refused by a sentence, or what Triton gets keeps to the contract."""
    try:
        read = read_inference("edit", text, LIMITS)
    except InvalidInput:
        return
    specs = {spec.name: spec for spec in MODELS["edit"].inputs}
    head = json.loads(read.to_json())
    assert set(head) <= {"id", "inputs", "outputs", "parameters"}
    for each, sent in zip(read.inputs, head["inputs"], strict=True):
        spec = specs[sent["name"]]
        assert sent["datatype"] == spec.dtype
        assert len(sent["shape"]) == 1 + len(spec.dims)
        assert all(1 <= side <= LIMITS.side for side in sent["shape"])
        assert sent["parameters"] == {"binary_data_size": each.size}
        assert each.data is None or len(each.data) == each.size
    assert read.size <= LIMITS.body
    for sent in head.get("outputs", []):
        assert set(sent["parameters"]) == {"binary_data"}


def test_all_inputs_together_are_bounded() -> None:
    limits = Limits(body=20)
    with pytest.raises(InvalidInput, match="inputs have 28 bytes; accepted: at most 20"):
        read_inference("edit", json.dumps(EDIT).encode(), limits)

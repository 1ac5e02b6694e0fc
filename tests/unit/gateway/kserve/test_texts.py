"""Texts of JSON become the bytes that tritonclient would have sent, and such bytes are checked."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.utils import serialize_byte_tensor

from tessera.contract import MODELS, TensorSpec
from tessera.errors import InvalidInput
from tessera_gateway.kserve.limits import LIMITS, Limits
from tessera_gateway.kserve.tensors import binary_size, check_shape, from_json
from tessera_gateway.kserve.texts import check_texts

ONE = TensorSpec("PROMPT", "BYTES", (1,))
SEVERAL = TensorSpec("REGION_PROMPTS", "BYTES", (-1,))
TEXTS = st.lists(st.text(st.characters(codec="utf-8")), min_size=1, max_size=LIMITS.elements)


def serialized(*texts: str | bytes) -> bytes:
    """As tritonclient writes them."""
    elements = [text.encode() if isinstance(text, str) else text for text in texts]
    return bytes(serialize_byte_tensor(np.array([elements], object)).item())


def read(content: Any, count: int, limits: Limits = LIMITS) -> bytes:
    """The bytes of JSON that shall have so many texts."""
    raw = content if isinstance(content, bytes) else json.dumps(content).encode()
    return from_json("inputs[0].data", raw, SEVERAL, (1, count), limits)


def check(data: bytes, count: int, limits: Limits = LIMITS) -> list[str]:
    return check_texts("inputs[0]", SEVERAL.name, data, (1, count), limits)


def test_the_contract_has_an_input_of_several_texts() -> None:
    assert SEVERAL.name in {spec.name for spec in MODELS["edit"].inputs if spec.dims == (-1,)}


def nested(texts: list[str], data: st.DataObject) -> Any:
    """The same texts within any lists, of which some are empty."""
    values: list[Any] = list(texts)
    for _ in range(data.draw(st.integers(0, 4))):
        start = data.draw(st.integers(0, len(values)))
        end = data.draw(st.integers(start, len(values)))
        values[start:end] = [values[start:end]]
    return values


@given(texts=TEXTS, escaped=st.booleans(), data=st.data())
def test_any_texts_there_and_back(texts: list[str], escaped: bool, data: st.DataObject) -> None:
    form = [texts] if len(texts) == 1 else nested(texts, data)
    sent = read(json.dumps(form, ensure_ascii=escaped).encode(), len(texts))
    assert sent == serialized(*texts)
    assert binary_size("size", len(sent), SEVERAL, (1, len(texts)), LIMITS) == len(sent)
    assert check(sent, len(texts)) == texts


@given(data=st.binary(min_size=12, max_size=40))
def test_any_bytes_are_refused_or_are_what_tritonclient_writes(data: bytes) -> None:
    try:
        texts = check(data, 3)
    except InvalidInput:
        return
    assert len(texts) == 3
    assert serialized(*texts) == data


@pytest.mark.parametrize("form", ["a", ["a"], [["a"]], [[["a"]]]], ids=str)
def test_one_text_in_any_lists(form: Any) -> None:
    assert from_json("X", json.dumps(form).encode(), ONE, (1, 1), LIMITS) == b"\x01\0\0\0a"


JSON: dict[str, tuple[Any, int, str]] = {
    "several for one": (["a", "b"], 1, "data is ['a', 'b']; accepted: one text"),
    "a number for one": ([7], 1, "data is 7; accepted: one text"),
    "none for one": ([], 1, "data is []; accepted: one text"),
    "no JSON for one": (b'["a"', 1, "data cannot be read; accepted: one text"),
    "a long one": (["x" * 65_537], 1, "data has 65537 bytes; accepted: at most 65536 bytes"),
    "too few": (["a", "b"], 3, "data has 2 values; accepted: 3, as the shape says"),
    "too many": ([["a", "b"], ["c"]], 2, "data has 3 values; accepted: 2, as the shape says"),
    "none": ([], 2, "data has 0 values; accepted: 2, as the shape says"),
    "one alone": ("a", 2, "data has 1 values; accepted: 2, as the shape says"),
    "a number": (["a", 7], 2, "data[1] is 7; accepted: a text"),
    "null": ([None, "b"], 2, "data[0] is None; accepted: a text"),
    "an object": ([["a"], [{"b": ["c"]}]], 2, "data[1] is {'b': ['c']}; accepted: a text"),
    "no JSON": (b'["a", "b"', 2, "data cannot be read; accepted: 2 texts"),
    "more behind": (b'["a", "b"], ["c"]', 2, "data cannot be read; accepted: 2 texts"),
    "no UTF-8": (b'["a", "\xff"]', 2, "data cannot be read; accepted: 2 texts"),
    "a surrogate": (rb'["a", "\ud800"]', 2, "; accepted: "),
    "brackets": (b"[" * 9000 + b"]" * 9000, 2, "data cannot be read; accepted: 2 texts"),
    "a long text": (
        ["a", "x" * 65_537],
        2,
        "data[1] has 65537 bytes; accepted: at most 65536 bytes",
    ),
    "long together": (
        ["x" * 65_536] * 4,
        4,
        "data has 262160 bytes of JSON; accepted: at most 262144",
    ),
    "lists without an end": (
        b"[" + b"[]," * 2_000_000 + b"[]]",
        1,
        "data has 6000004 bytes of JSON; accepted: at most 262144",
    ),
}


@pytest.mark.parametrize(("content", "count", "sentence"), JSON.values(), ids=JSON.keys())
def test_json_that_is_refused(content: Any, count: int, sentence: str) -> None:
    with pytest.raises(InvalidInput, match=re.escape(sentence)) as caught:
        read(content, count)
    assert str(caught.value).startswith("inputs[0].data")


BYTES: dict[str, tuple[bytes, int, str]] = {
    "one too long": (b"\5\0\0\0abc", 1, ") says that its text has 5 bytes; accepted: 3, as many"),
    "one too short": (b"\2\0\0\0abc", 1, ") says that its text has 2 bytes; accepted: 3, as many"),
    "two for one": (serialized("a", "b"), 1, ") says that its text has 1 bytes; accepted: 6, as"),
    "one of 4 GiB": (b"\xff" * 4, 1, ") says that its text has 4294967295 bytes; accepted: 0"),
    "no UTF-8 in one": (b"\1\0\0\0\xff", 1, ") is not UTF-8; accepted: text in UTF-8"),
    "one for two": (
        serialized("abcd"),
        2,
        "[0]) says that its text has 4 bytes; accepted: at most 0, as many as follow",
    ),
    "three for two": (
        serialized("a", "b", "c"),
        2,
        "[1]) says that its text has 1 bytes; accepted: 6, as many as follow",
    ),
    "the first too long": (
        b"\6\0\0\0aaaa\1\0\0\0b",
        2,
        "[0]) says that its text has 6 bytes; accepted: at most 5, as many as follow",
    ),
    "the first of 4 GiB": (
        b"\xff\xff\xff\xffaaaa\1\0\0\0b",
        2,
        "[0]) says that its text has 4294967295 bytes; accepted: at most 5, as many as follow",
    ),
    "the second too long": (
        b"\1\0\0\0a\2\0\0\0b",
        2,
        "[1]) says that its text has 2 bytes; accepted: 1, as many as follow",
    ),
    "a byte behind": (
        serialized("a", "b") + b"\0",
        2,
        "[1]) says that its text has 1 bytes; accepted: 2, as many as follow",
    ),
    "a length cut off": (
        serialized("a", "b") + b"\0\0",
        3,
        "[0]) says that its text has 1 bytes; accepted: at most 0, as many as follow",
    ),
    "no UTF-8": (serialized("a", b"\xff"), 2, "[1]) is not UTF-8; accepted: text in UTF-8"),
    "a character cut in two": (serialized(b"\xc3", b"\xa9"), 2, "[0]) is not UTF-8"),
    "a long text": (
        serialized("a", "x" * 65_537),
        2,
        "[1]) has 65537 bytes; accepted: at most 65536 bytes",
    ),
}


@pytest.mark.parametrize(("data", "count", "sentence"), BYTES.values(), ids=BYTES.keys())
def test_bytes_that_are_refused(data: bytes, count: int, sentence: str) -> None:
    with pytest.raises(InvalidInput, match=re.escape(sentence)) as caught:
        check(data, count)
    assert str(caught.value).startswith("inputs[0] (REGION_PROMPTS")


@pytest.mark.parametrize(
    ("count", "least", "most"),
    [(1, 4, 65_540), (2, 8, 131_080), (4, 16, 262_160), (5, 20, 262_164), (64, 256, 262_400)],
)
def test_sizes_of_so_many_texts(count: int, least: int, most: int) -> None:
    for size in (least, most):
        assert binary_size("size", size, SEVERAL, (1, count), LIMITS) == size
    bad: list[Any] = [least - 1, most + 1, -1, 10**400, float(least), str(least), None, True]
    for size in bad:
        with pytest.raises(InvalidInput, match=f"^size is .*; accepted: {least} to {most} bytes$"):
            binary_size("size", size, SEVERAL, (1, count), LIMITS)


def test_the_largest_texts_are_accepted() -> None:
    texts = ["x" * 65_536] * 4
    data = serialized(*texts)
    assert binary_size("size", len(data), SEVERAL, (1, 4), LIMITS) == len(data)
    assert check(data, 4) == texts


@pytest.mark.parametrize("count", [65, 65_536])
def test_shapes_of_too_many_texts(count: int) -> None:
    assert check_shape("shape", [1, 64], SEVERAL, LIMITS) == (1, 64)
    with pytest.raises(InvalidInput, match=re.escape("accepted: [1, n], at most 64 texts")):
        check_shape("shape", [1, count], SEVERAL, LIMITS)


@pytest.mark.parametrize("shape", [[1, 65_537], [1, 0], [1, -1], [2, 1], [1, 1, 1], [64], None])
def test_shapes_of_no_texts(shape: Any) -> None:
    with pytest.raises(InvalidInput, match=r"^shape is .*; accepted: \[1, n\]"):
        check_shape("shape", shape, SEVERAL, LIMITS)

"""The elements of LORAS and CONTROLS: what is said about one that is not right."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera.errors import InvalidInput, unknown_name
from tessera.requests.controls import ControlElement
from tessera.requests.elements import elements_of
from tessera.requests.request import Lora
from tests.samples.requests import inputs

LIST = "a JSON list of at most 8 objects with the keys name, weight, text_weight"
OBJECT = "an object with the keys name, weight, text_weight"
RANGE = "a number from -100 to 100"
KEYS = "name, weight, text_weight"
DEEP = '{"a":' * 900 + "1" + "}" * 900

BAD = {
    "not JSON": ("[{", f"LORAS is '[{{'; accepted: {LIST}"),
    "an object": ("{}", f"LORAS is '{{}}'; accepted: {LIST}"),
    "null": ("null", f"LORAS is 'null'; accepted: {LIST}"),
    "empty": ("", f"LORAS is ''; accepted: {LIST}"),
    "many": (json.dumps([{"name": "a"}] * 50), f"LORAS has 50 elements; accepted: {LIST}"),
    "number": ("[1]", f"LORAS[0] is 1; accepted: {OBJECT}"),
    "text": ('["a"]', f"LORAS[0] is 'a'; accepted: {OBJECT}"),
    "list": ("[[]]", f"LORAS[0] is []; accepted: {OBJECT}"),
    "null element": ("[null]", f"LORAS[0] is None; accepted: {OBJECT}"),
    "no name": ("[{}]", "LORAS[0].name is missing; accepted: a text"),
    "misspelt name": (
        '[{"nam": "x"}]',
        f"LORAS[0].nam is not a key; accepted: {KEYS}; close: name",
    ),
    "misspelt weight": (
        '[{"name": "a", "wieght": 1}]',
        f"LORAS[0].wieght is not a key; accepted: {KEYS}; close: weight",
    ),
    "another key": ('[{"name": "a", "zz": 1}]', f"LORAS[0].zz is not a key; accepted: {KEYS}"),
    "second element": (
        '[{"name": "a"}, {"nam": 1}]',
        f"LORAS[1].nam is not a key; accepted: {KEYS}; close: name",
    ),
    "a key with blanks": (
        '[{"name": "a", "a key": 1}]',
        f"LORAS[0] has the key 'a key'; accepted: {KEYS}",
    ),
    "an empty key": ('[{"name": "a", "": 1}]', f"LORAS[0] has the key ''; accepted: {KEYS}"),
    "a surrogate as key": (
        r'[{"name": "a", "\ud800": 1}]',
        f"LORAS[0] has the key '\\ud800'; accepted: {KEYS}",
    ),
    "a long key": (
        f'[{{"name": "a", "{"k" * 500}": 1}}]',
        f"LORAS[0] has the key '{'k' * 80}... (500 characters)'; accepted: {KEYS}",
    ),
    "a number as name": ('[{"name": 1}]', "LORAS[0].name is 1; accepted: a text"),
    "a list as name": ('[{"name": ["a"]}]', "LORAS[0].name is ['a']; accepted: a text"),
    "a text as weight": (
        '[{"name": "a", "weight": "1"}]',
        f"LORAS[0].weight is '1'; accepted: {RANGE}",
    ),
    "true as weight": (
        '[{"name": "a", "weight": true}]',
        f"LORAS[0].weight is True; accepted: {RANGE}",
    ),
    "null as weight": (
        '[{"name": "a", "weight": null}]',
        f"LORAS[0].weight is None; accepted: {RANGE}",
    ),
    "an object as weight": (
        '[{"name": "a", "weight": {"b": 1}}]',
        f"LORAS[0].weight is {{'b': 1}}; accepted: {RANGE}",
    ),
    "NaN": ('[{"name": "a", "weight": NaN}]', f"LORAS[0].weight is nan; accepted: {RANGE}"),
    "infinity": ('[{"name": "a", "weight": 1e400}]', f"LORAS[0].weight is inf; accepted: {RANGE}"),
    "a large weight": (
        '[{"name": "a", "weight": 101}]',
        f"LORAS[0].weight is 101; accepted: {RANGE}",
    ),
    "a huge integer": (
        f'[{{"name": "a", "weight": {10**400}}}]',
        f"LORAS[0].weight is 1{'0' * 79}... (401 characters); accepted: {RANGE}",
    ),
    "a text weight": (
        '[{"name": "a", "text_weight": false}]',
        f"LORAS[0].text_weight is False; accepted: {RANGE} or null",
    ),
}


@pytest.mark.parametrize(("text", "sentence"), BAD.values(), ids=BAD.keys())
def test_what_is_wrong_is_named_with_its_value_and_what_is_accepted(
    text: str, sentence: str
) -> None:
    with pytest.raises(InvalidInput) as caught:
        elements_of(inputs(LORAS=text), "LORAS", Lora, 8)
    assert str(caught.value) == sentence
    received = InvalidInput.received(sentence)
    assert received.field == caught.value.field
    assert received.accepted == caught.value.accepted
    assert received.problem == caught.value.problem
    assert str(received) == sentence


@pytest.mark.parametrize("depth", [200, 500, 900, 990, 2000, 40_000])
@pytest.mark.parametrize("where", ["list", "element", "weight"])
def test_nesting_is_an_error_however_deep(depth: int, where: str) -> None:
    nested = "[" * depth + "]" * depth
    text = {"list": nested, "element": f"[{nested}]", "weight": f'[{{"weight": {nested}}}]'}[where]
    with pytest.raises(InvalidInput) as caught:
        elements_of(inputs(LORAS=text), "LORAS", Lora, 8)
    assert len(str(caught.value)) < 400


def test_a_surrogate_in_a_name_is_an_unknown_name() -> None:
    (lora,) = elements_of(inputs(LORAS=r'[{"name": "\ud800"}]'), "LORAS", Lora, 8)
    error = unknown_name("LORAS[0].name", lora.name, ["night"], "LoRA")
    assert str(error) == "LORAS[0].name is '\\ud800'; accepted: night"


def test_the_names_of_a_control_s_ways_are_listed() -> None:
    text = '[{"name": "edges", "preprocess": null}]'
    with pytest.raises(InvalidInput) as caught:
        elements_of(inputs(CONTROLS=text), "CONTROLS", ControlElement, 4)
    assert str(caught.value) == (
        "CONTROLS[0].preprocess is None; accepted: none, canny, grey, invert, inpaint"
    )


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(st.characters()),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters()), inner),
    max_leaves=8,
)
ELEMENTS = st.lists(
    JSON | st.fixed_dictionaries({}, optional=dict.fromkeys((*KEYS.split(", "), "nam", "�"), JSON))
)


@given(elements=ELEMENTS)
def test_any_json_is_elements_or_an_error_that_can_be_sent(elements: Any) -> None:
    try:
        found = elements_of(inputs(LORAS=json.dumps(elements)), "LORAS", Lora, 8)
    except InvalidInput as error:
        assert error.field.startswith("LORAS")
        str(error).encode()
        assert "\n" not in str(error)
        assert InvalidInput.received(str(error)).field == error.field
        return
    assert all(-100 <= lora.weight <= 100 for lora in found)


@given(text=st.binary(max_size=40))
def test_any_bytes_are_a_list_or_an_error(text: bytes) -> None:
    try:
        elements_of(inputs(LORAS=text), "LORAS", Lora, 8)
    except InvalidInput as error:
        assert error.field.startswith("LORAS")

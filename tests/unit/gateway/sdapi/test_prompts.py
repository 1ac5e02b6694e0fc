"""LoRAs in prompts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera_client import Lora
from tessera_gateway.errors import ApiError
from tessera_gateway.sdapi.prompts import read_prompt

READ: dict[str, tuple[str, str, list[Lora]]] = {
    "none": ("a red  circle, big", "a red  circle, big", []),
    "one": ("a circle <lora:night:0.5>", "a circle", [Lora("night", 0.5)]),
    "no weight": ("<lora:night> a circle", "a circle", [Lora("night", 1.0)]),
    "in the middle": ("a <lora:x:2> circle", "a circle", [Lora("x", 2.0)]),
    "at the start": ("<lora:x:1>, a circle", "a circle", [Lora("x", 1.0)]),
    "two": ("a<lora:x:1><lora:y:-0.5>", "a", [Lora("x", 1.0), Lora("y", -0.5)]),
    "text weight first": ("a <lora:x:0.25:0.75>", "a", [Lora("x", 0.75, 0.25)]),
    "named": ("a <lora:x:te=0.1:unet=0.9>", "a", [Lora("x", 0.9, 0.1)]),
    "unet only": ("a <lora:x:1:unet=0.5>", "a", [Lora("x", 0.5, 1.0)]),
    "another spelling": ("a <lyco:x:1>", "a", [Lora("x", 1.0)]),
    "other networks": ("a <hypernet:x:1> b", "a b", []),
    "no tag": ("a < b: c > d", "a < b: c > d", []),
    "a name with spaces": ("a <lora:my lora v2.0:1>", "a", [Lora("my lora v2.0", 1.0)]),
}


@pytest.mark.parametrize(("prompt", "rest", "loras"), READ.values(), ids=READ.keys())
def test_tags_are_taken_out(prompt: str, rest: str, loras: list[Lora]) -> None:
    assert read_prompt(prompt) == (rest, loras)


@pytest.mark.parametrize(
    "weight", ["", "x", "nan", "inf", "te=", "unet=", "1:unet=", "unet=x", "1:x"]
)
def test_a_weight_that_is_none_is_refused(weight: str) -> None:
    with pytest.raises(ApiError, match=r"prompt has '<lora:night:.*; accepted: <lora:name:weight>"):
        read_prompt(f"a circle <lora:night:{weight}>")


@given(prompt=st.text("<>:lora=, 01x"))
def test_nothing_else_is_raised(prompt: str) -> None:
    try:
        rest, loras = read_prompt(prompt)
    except ApiError:
        return
    assert len(rest) <= len(prompt)
    assert len(loras) <= prompt.count("<lora:")

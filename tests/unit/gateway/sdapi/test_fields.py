"""Which fields of webui have an effect, are refused, or are left out; and that docs say so."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tessera_gateway.errors import ApiError
from tessera_gateway.openai.validation import from_fields
from tessera_gateway.sdapi.fields import IGNORED, REFUSED, Img2Img, Txt2Img, check_fields

PAGE = Path(__file__).resolve().parents[4] / "docs" / "user" / "sdapi.md"


def documented(title: str) -> set[str]:
    """Code in the first cells of the table below a heading."""
    section = PAGE.read_text().split(f"## {title}\n")[1].split("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("|")]
    return {name for row in rows for name in re.findall(r"`(\w+)`", row.split("|")[1])}


def test_docs_have_every_field() -> None:
    assert documented("Fields with an effect") == set(Img2Img.model_fields)
    assert documented("Refused fields") == set(REFUSED)
    assert documented("Fields without effect") == set(IGNORED)


def test_no_field_is_in_two_lists() -> None:
    lists = [set(Img2Img.model_fields), set(REFUSED), set(IGNORED)]
    assert len(set().union(*lists)) == sum(map(len, lists))


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("value", [None, False, 0, "", [], {}], ids=repr)
def test_refused_fields_may_ask_for_nothing(name: str, value: Any) -> None:
    check_fields(Txt2Img.model_validate({name: value}))


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("value", [True, 0.5, "x", ["x"]], ids=repr)
def test_refused_fields_may_not_ask_for_something(name: str, value: Any) -> None:
    with pytest.raises(ApiError, match=f"{name} is .*; accepted: nothing") as caught:
        check_fields(Txt2Img.model_validate({name: value}))
    assert caught.value.status == 400


@pytest.mark.parametrize("name", [*IGNORED, "made_up"])
def test_others_may_have_any_value(name: str) -> None:
    check_fields(Txt2Img.model_validate({name: {"a": [1]}}))


PICTURE = {"init_images": ["a"]}


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (
            {"edit_quality": "worst"},
            "tessera.edit_quality is 'worst'; accepted: 'fast', 'balanced' or 'best'",
        ),
        ({"mask_feather": 0}, "tessera.mask_feather is 0; accepted: "),
        ({"mask_tone": "loud"}, "tessera.mask_tone is 'loud'; accepted: 'drawn' or 'matched'"),
        ({"mode": "fast"}, "tessera.mode is 'fast'; accepted: 'auto', 'sparse' or 'dense'"),
        ({"feather": 4}, "tessera.feather is no field here; accepted: edit_quality, "),
    ],
    ids=lambda given: next(iter(given)) if isinstance(given, dict) else "",
)
def test_what_tessera_does_not_take(given: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ApiError) as caught:
        from_fields(Img2Img, PICTURE | {"tessera": given})
    assert str(caught.value).startswith(sentence)


@pytest.mark.parametrize("name", ["mask_feather", "mask_tone"])
def test_what_is_of_masks_needs_one(name: str) -> None:
    given = {name: {"mask_feather": 4, "mask_tone": "matched"}[name]}
    check_fields(Img2Img.model_validate(PICTURE | {"mask": "a", "tessera": given}))
    with pytest.raises(ApiError, match=f"tessera.{name} is .*; accepted: nothing without mask"):
        check_fields(Img2Img.model_validate(PICTURE | {"tessera": given}))


def test_generations_have_no_options_of_edits() -> None:
    check_fields(Txt2Img.model_validate({"tessera": {}}))
    with pytest.raises(ApiError, match=r"tessera is .*; accepted: nothing, unless it is img2img"):
        check_fields(Txt2Img.model_validate({"tessera": {"mode": "dense"}}))

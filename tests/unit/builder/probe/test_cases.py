"""The edits of a probe."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from tessera.errors import BundleError
from tessera_build.cli import DEMO_MODEL
from tessera_build.probe.cases import (
    GENERAL,
    LIMITS,
    SHARES,
    Case,
    Prompts,
    cases,
    read_prompts,
)


@pytest.mark.parametrize("size", [(128, 128), (1024, 640), (64, 512)])
@pytest.mark.parametrize("share", SHARES)
def test_a_mask_has_its_share_and_is_inside(share: float, size: tuple[int, int]) -> None:
    for number, at in enumerate(((0.0, 0.0), (0.5, 0.5), (1.0, 1.0), None)):
        mask = Case(number, share, Prompts("a", "b", "c", at)).mask(*size)
        assert mask.shape == (size[1], size[0])
        assert (mask == 255).mean() == pytest.approx(share, rel=0.12)


def test_a_mask_lies_where_it_is_wanted() -> None:
    mask = Case(0, 0.02, Prompts("a", "b", "c", (0.25, 0.75))).mask(200, 100)
    rows, columns = mask.any(1).nonzero()[0], mask.any(0).nonzero()[0]
    assert (columns.mean(), rows.mean()) == pytest.approx((50, 75), abs=1)


def test_each_round_has_all_shares_and_other_prompts() -> None:
    found = list(islice(cases(GENERAL), 4 * len(SHARES)))
    assert [case.share for case in found] == 4 * list(SHARES)
    for share in SHARES:
        assert len({case.prompts for case in found if case.share == share}) == 4


def test_limits_lie_between_the_shares() -> None:
    assert all(share < limit for share, limit in zip(SHARES, LIMITS, strict=True))
    assert all(limit < share for limit, share in zip(LIMITS, SHARES[1:], strict=False))
    assert LIMITS[-1] == 1.0


def test_the_demo_models_prompts() -> None:
    found = read_prompts(DEMO_MODEL.parent / "prompts.json")
    assert len(found) == 12
    assert all(each.at is not None and each.near != each.edit for each in found)


ENTRY = {"template": "a", "edit": "b", "near": "c"}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([], "holds no list of prompts"),
        ({}, "holds no list of prompts"),
        (["x"], "entry 0 is 'x', not an object of template, edit, near and perhaps at"),
        ([ENTRY, ENTRY | {"seed": 1}], "entry 1 has seed; accepted: an object"),
        ([ENTRY | {"near": " "}], "entry 0: near is ' ', not a text"),
        ([{"template": "a", "near": "c"}], "entry 0: edit is None, not a text"),
        ([ENTRY | {"at": [0.5]}], "entry 0: at is [0.5], not two numbers from 0 to 1"),
        ([ENTRY | {"at": [0.5, 2]}], "entry 0: at is [0.5, 2], not two numbers from 0 to 1"),
        ([ENTRY | {"at": [True, 0]}], "entry 0: at is [True, 0], not two numbers from 0 to 1"),
    ],
)
def test_bad_prompts_are_named(tmp_path: Path, content: Any, said: str) -> None:
    path = tmp_path / "prompts.json"
    path.write_text(json.dumps(content))
    with pytest.raises(BundleError) as error:
        read_prompts(path)
    assert str(path) in str(error.value)
    assert said in str(error.value)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="cannot be read"):
        read_prompts(tmp_path / "none.json")

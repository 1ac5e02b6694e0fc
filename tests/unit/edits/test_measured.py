"""Edit policies that were measured with a bundle."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from tessera.contract import EditQuality
from tessera.edits.measured import FILE, QUALITIES, ErrorRow, Measured, policies_of
from tessera.edits.quality import BUILT_IN, FAST, Policy
from tessera.errors import BundleError
from tessera.templates.keys import Nearness

DIGEST = "d" * 64
WIDE = Policy(4, fifths=(0, 1))
PAIRS = list(product(QUALITIES, Nearness))


def written(folder: Path, digest: str = DIGEST) -> Path:
    rows = ((0.1, (Policy(2, every=3), WIDE)), (1.0, ()))
    errors = [ErrorRow("own", 0.1, 4, {"1": 0.1}, [1.0, 0.5, 0.7, 0.8, 0.9], {"3": 0.6})]
    reached = dict.fromkeys(PAIRS, rows)
    expected = {pair: [0.97, None] for pair in PAIRS}
    return Measured(digest, {"cases": 4}, errors, reached, expected).write(folder)


def test_a_bundle_with_a_table_uses_it(tmp_path: Path) -> None:
    written(tmp_path)
    policies, news = policies_of(tmp_path, DIGEST)
    assert policies.measured
    assert news == ""
    for quality, nearness in PAIRS:
        assert policies.of(quality, nearness, 0.1) == (Policy(2, every=3), WIDE)
        assert policies.of(quality, nearness, 0.11) == ()  # only a dense edit reaches it
    for nearness in Nearness:
        assert policies.of(EditQuality.FAST, nearness, 0.1) == (FAST,)


def test_a_bundle_without_one_uses_the_demo_models(tmp_path: Path) -> None:
    policies, news = policies_of(tmp_path, DIGEST)
    assert policies == BUILT_IN
    assert not policies.measured
    assert "was not measured" in news
    assert f"tessera-build probe {tmp_path}" in news


def test_a_table_of_another_bundle_is_not_used(tmp_path: Path) -> None:
    written(tmp_path, "e" * 64)
    policies, news = policies_of(tmp_path, DIGEST)
    assert policies == BUILT_IN
    assert "another state of the bundle" in news


def test_a_server_tells_them(tmp_path: Path) -> None:
    written(tmp_path)
    told = policies_of(tmp_path, DIGEST)[0].table
    assert json.loads(json.dumps(told))["best"]["near"] == [
        [0.1, [[2, 3, []], [4, 0, [0, 1]]]],
        [1.0, []],
    ]
    assert told["fast"]["own"] == [[1.0, [[1, 0, []]]]]


def change(*path: str | int, to: Any) -> Callable[[Any], None]:
    """Sets a value in the content of a file."""

    def apply(content: Any) -> None:
        for step in path[:-1]:
            content = content[step]
        content[path[-1]] = to

    return apply


ROWS = ("policies", "best", "near")
FIRST = (*ROWS, 0, "policies", 0)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (change("schema", to=7), "schema is 7, this Tessera reads 1"),
        (change("policies", to=[]), "policies.balanced.own is incomplete"),
        (change("policies", "best", to={}), "policies.best.own is incomplete"),
        (change(*ROWS, to=[]), "policies.best.near: up_to is [], not ascending up to 1"),
        (change(*ROWS, 1, "up_to", to=0.05), "up_to is [0.1, 0.05], not ascending up to 1"),
        (change(*ROWS, 0, "up_to", to="x"), "not numbers above 0 up to 1"),
        (change(*ROWS, 0, "up_to", to=float("nan")), "not numbers above 0 up to 1"),
        (change(*FIRST, "margin", to=-1), "margin is -1, not a whole number from 0 to 64"),
        (change(*FIRST, "margin", to=True), "margin is True, not a whole number"),
        (change(*FIRST, "every", to=1.5), "every is 1.5, not a whole number"),
        (change(*FIRST, "fifths", to=[5]), "fifths is [5], not a list of whole numbers"),
        (change(*FIRST, to=[]), "policies.best.near is incomplete"),
    ],
    ids=[*map(str, range(12))],
)
def test_a_bad_table_is_named(tmp_path: Path, damage: Callable[[Any], None], said: str) -> None:
    path = written(tmp_path)
    content = json.loads(path.read_text())
    damage(content)
    path.write_text(json.dumps(content))
    with pytest.raises(BundleError) as error:
        policies_of(tmp_path, DIGEST)
    assert str(path) in str(error.value)
    assert said in str(error.value)
    assert f"remove it or run tessera-build probe {tmp_path}" in str(error.value)


@pytest.mark.parametrize("text", ["", "[", "[]", "null", '"x"'])
def test_a_file_that_is_no_table(tmp_path: Path, text: str) -> None:
    (tmp_path / FILE).write_text(text)
    with pytest.raises(BundleError, match=FILE):
        policies_of(tmp_path, DIGEST)

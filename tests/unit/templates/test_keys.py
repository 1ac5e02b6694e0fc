"""Keys of recordings."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from tessera.plan import AdapterUse, ControlUse
from tessera.templates.keys import RecordingKey, recorded_controls

KEY = RecordingKey("bundle", "template", "euler", 20, 1)
TEXT = "0123456789abcdef"


def test_recordings_without_a_prompt_keep_the_names_they_had() -> None:
    assert KEY.digest == "3a0bf63d00da2ba9a4f55a8e"
    assert not {"text", "adapters"} & KEY.fields.keys()
    assert RecordingKey.from_fields(KEY.fields) == KEY


def test_a_prompt_is_part_of_the_name() -> None:
    own = KEY.with_text(TEXT)
    assert own.digest == f"{KEY.digest}-{TEXT}"
    assert RecordingKey.from_fields(own.fields) == own
    assert own.with_text("") == KEY


def test_an_adapter_set_is_part_of_the_name() -> None:
    """Each of its files by content, so a recording with an older one is not found any more."""
    uses = AdapterUse("a", "0a", 1.0), AdapterUse("b", "1b", -0.5)
    key = KEY.with_adapters(uses).with_text(TEXT)
    assert RecordingKey.from_fields(json.loads(json.dumps(key.fields))) == key
    assert key.digest.endswith(f"-{TEXT}")
    replaced = AdapterUse("a", "2c", 1.0)
    others = [KEY, *(KEY.with_adapters(s) for s in ((), uses[:1], (replaced,), uses))]
    assert len({each.with_text(TEXT).digest for each in others}) == len(others) - 1
    assert key.with_adapters(()).with_text("") == KEY


@pytest.mark.parametrize("adapters", [7, ["a"], [{"name": "a"}]])
def test_other_adapters_are_another_versions(adapters: object) -> None:
    with pytest.raises(TypeError):
        RecordingKey.from_fields({**KEY.fields, "adapters": adapters})


EDGES = ControlUse("edges", 0.5, 0.0, 0.5, image="0a")


def test_controlnets_are_part_of_the_name() -> None:
    depth = ControlUse("depth", 1.0, 0.25, 1.0, guess_mode=True, image="1b")
    controls = recorded_controls([EDGES, depth], range(20))
    assert [(c.name, c.first, c.last) for c in controls] == [("depth", 5, 20), ("edges", 0, 10)]
    key = KEY.with_controls(controls).with_text(TEXT)
    assert RecordingKey.from_fields(json.loads(json.dumps(key.fields))) == key
    assert controls == recorded_controls([depth, EDGES], range(20))
    moved = [replace(EDGES, **{name: value}) for name, value in OTHERS.items()]
    others = [KEY.with_controls(recorded_controls([use], range(20))) for use in (EDGES, *moved)]
    assert len({each.digest for each in (KEY, key, *others)}) == len(OTHERS) + 3
    assert key.of_negative == KEY.with_controls(recorded_controls([EDGES], range(20))).with_text(
        TEXT
    )


OTHERS: dict[str, Any] = {
    "name": "depth",
    "image": "1b",
    "scale": 0.6,
    "end": 0.6,
    "start": 0.1,
    "mode": 0,
}


def test_controlnets_without_an_effect_are_not() -> None:
    uses = ControlUse("edges", 0.0, 0.0, 1.0), ControlUse("edges", 1.0, 0.51, 0.52)
    assert recorded_controls(uses, range(20)) == ()


@pytest.mark.parametrize(
    ("start", "end", "whole"),
    [(0.0, 1.0, (0, 20)), (0.0, 0.5, (0, 15)), (0.5, 1.0, (15, 20))],
    ids=["always", "at first", "at last"],
)
def test_a_window_is_of_the_evaluations_that_are_run(
    start: float, end: float, whole: tuple[int, int]
) -> None:
    """At half the strength, the last ten of twenty. A ControlNet that always applies needs no
    recording of its own for that.
    """
    (found,) = recorded_controls([ControlUse("edges", 1.0, start, end)], range(10, 20))
    assert (found.first, found.last) == whole

"""What a soak reports."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from PIL import Image

from bench.soak.faults import Fault
from bench.soak.report import Soak, draw, summary
from bench.soak.traffic import (
    OTHERS,
    PICTURES,
    Ask,
    Expected,
    Happened,
    Picture,
    _one,
    compared,
    edited,
)
from bench.soak.watch import OURS, WITH_PROCESSES, Part, Seen, growth
from tessera.contract import Info
from tessera_client import Client, Result


def seen(at: float, memory: float, missing: str = "", files: int = 10, edits: int = 1) -> Seen:
    parts = {name: Part(1, 1, 2) for name in WITH_PROCESSES if name != missing} | {
        "tritonserver": Part(round(memory), 1, 10),
        OURS: Part(1, 1, files),
    }
    return Seen(at, parts | {"edit": Part(edits, edits, 40 * edits)}, shared=4)


CALM = ((2.0, 3.0), (6.0, 7.0))


def soak(
    *, memory: list[float], happened: list[Happened], looks: Sequence[Seen] | None = None
) -> Soak:
    looks = looks or [seen(float(at), value) for at, value in enumerate(memory)]
    faults = [Fault(30.0, "killed tritonserver", 9.04)]
    return Soak(1.0, 0.0, happened, faults, looks, [], False, CALM)


def test_growth_is_that_of_the_median() -> None:
    assert growth([100, 100, 500], [110, 110, 1]) == pytest.approx(0.1)
    assert growth([0, 0, 1], [1, 1]) is None
    assert growth([], [1]) is None
    assert growth([1], []) is None


def test_every_request_is_counted_and_faulty_ones_are_listed() -> None:
    happened = [
        Happened(1.0, "plain", "right", 0.5),
        Happened(2.0, "plain", "unavailable", 0.1),
        Happened(3.0, "LoRA", "wrong", 0.5, "40/255 from the picture drawn alone"),
    ]
    found = summary(soak(memory=[1e9] * 8, happened=happened))
    assert found["requests"] == 3
    assert found["outcomes"] == {"LoRA": {"wrong": 1}, "plain": {"right": 1, "unavailable": 1}}
    (faulty,) = found["faulty"]
    assert (faulty["kind"], faulty["note"][:6]) == ("LoRA", "40/255")
    assert found["faults"] == [{"at": 30.0, "what": "killed tritonserver", "seconds": 9.0}]
    assert found["memory_growth"] == 0.0


def test_a_short_run_does_not_speak_of_growth() -> None:
    short = replace(soak(memory=[1e9] * 7, happened=[]), calm=None)
    assert summary(short)["memory_growth"] is None
    assert (short.grown, short.failed) == ([], False)


def test_only_what_is_calm_is_compared() -> None:
    """Not what warms up, nor what is under way between the faults."""
    run = soak(memory=[1.0, 9e9, 1e9, 1e9, 5e9, 7e9, 1.01e9, 1.01e9], happened=[])
    assert run.memory_growth == pytest.approx(0.01, rel=0.01)


def test_looks_at_a_server_without_one_of_its_models_do_not_count() -> None:
    whole = [seen(at, 1e9) for at in range(8)]
    partial = [seen(2.0 + at, 5e8, missing="denoise") for at in range(8)]
    found = summary(soak(memory=[], happened=[], looks=whole + partial))
    assert (found["memory_growth"], found["whole_looks"]) == (0.0, 8)
    assert found["memory_mb"]["lowest"] == 500
    assert found["parts"]["tritonserver"] == {
        "median_mb": 1000,
        "growth": 0.0,
        "open_files": 10,
        "most_open_files": 10,
    }
    assert found["looks"][0]["parts"]["tritonserver"] == [1000.0, 1, 10]
    assert [each["whole"] for each in found["looks"]] == [True] * 8 + [False] * 8


def test_growth_is_told_for_each_part() -> None:
    looks = [
        Seen(at, dict.fromkeys([*WITH_PROCESSES, OURS], Part(100, 1, 1)) | {"denoise": part}, 1)
        for at, part in enumerate(Part(100 + 10 * at, 1, 1) for at in range(8))
    ]
    found = summary(soak(memory=[], happened=[], looks=looks))["parts"]
    assert found["decode"]["growth"] == 0.0
    assert found["denoise"]["growth"] == pytest.approx(165 / 125 - 1)
    gone = [
        *looks[:6],
        *(replace(look, parts={**look.parts, "gone": Part(1, 1, 1)}) for look in looks[6:]),
    ]
    assert summary(soak(memory=[], happened=[], looks=gone))["parts"]["gone"]["growth"] is None


def test_growth_fails_a_run() -> None:
    def run(files: int) -> Soak:
        looks = [seen(at, 1e9, files=100 + files * (at >= 6), edits=1 + at // 4) for at in range(8)]
        return soak(memory=[], happened=[], looks=looks)

    assert (run(1).grown, run(1).failed) == ([], False)
    assert (run(2).grown, run(2).failed) == (["open files by 2.0 %"], True)
    larger = soak(memory=[1e9] * 6 + [1.021e9] * 2, happened=[])
    assert larger.grown == summary(larger)["grown"] == ["memory by 2.1 %"]


def test_an_error_that_nobody_thought_of_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that ends with it would ask for nothing any more, and nobody would notice."""

    def unreadable(*_: object) -> None:
        raise KeyError("INFO")

    monkeypatch.setitem(cast(dict[str, Ask], OTHERS), "refused", unreadable)
    happened = _one(cast(Client, None), "refused", random.Random(0), {}, Path())
    assert (happened.outcome, happened.note) == ("unexpected", "KeyError: 'INFO'")


def test_a_wrong_picture_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    black = np.zeros((8, 8, 3), np.uint8)
    known: dict[str, Any] = {"seed": 1, "steps": 8, "width": 8, "height": 8, "scheduler": "euler"}
    known |= {"encode_ms": 1.0, "decode_ms": 1.0, "total_ms": 2.0}
    info = Info(job_id="j", **known)
    drawn = Result(Image.fromarray(black), info)
    monkeypatch.setitem(cast(dict[str, Ask], PICTURES), "plain", lambda *_, **__: drawn)
    expected = {"plain": Expected(black + np.uint8(9), 0)}
    happened = _one(cast(Client, None), "plain", random.Random(0), expected, tmp_path)
    assert happened.outcome == "wrong"
    assert happened.note == "9/255 from the picture drawn alone, job j"
    assert not np.asarray(Image.open(tmp_path / "j.png")).any()


def test_whatever_is_left_fails_a_run_and_unfinished_files_are_told() -> None:
    assert replace(soak(memory=[1e9], happened=[]), left=["process 7"]).failed
    run = replace(soak(memory=[1e9], happened=[]), unfinished=3)
    assert (summary(run)["unfinished"], run.failed) == (3, False)


def answered(image: Picture, sparse: int) -> Result:
    info = SimpleNamespace(sparse_ticks=sparse)
    return cast(Result, SimpleNamespace(image=image, info=info))


def test_what_is_denser_than_planned_is_compared_outside_of_the_mask() -> None:
    name = "sparse edit"
    image, mask = edited(name)
    drawn = np.where(mask[..., None] > 0, 7, image).astype(np.uint8)
    expected = Expected(drawn, sparse=6)
    assert compared(name, answered(drawn, 6), expected) == ("right", "")
    other = np.where(mask[..., None] > 0, 90, image).astype(np.uint8)
    assert compared(name, answered(other, 6), expected)[0] == "wrong"
    assert compared(name, answered(other, 5), expected) == ("denser", "")
    other[0, 0, 0] ^= 1
    assert compared(name, answered(other, 5), expected) == ("wrong", "1/255 outside of the mask")


def test_the_figure_is_drawn(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    happened = [Happened(float(at), "plain", "right", rng.uniform(0.1, 2)) for at in range(60)]
    draw(soak(memory=[1e9] * 20, happened=happened), tmp_path / "soak.png")
    assert (tmp_path / "soak.png").read_bytes().startswith(b"\x89PNG")

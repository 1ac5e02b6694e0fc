"""Scales that are learned from what pictures took."""

from __future__ import annotations

import random

import msgspec
import pytest

from tessera_gateway.fleet.book import Book
from tessera_gateway.fleet.learning import (
    ENOUGH,
    FORGOTTEN_S,
    LIMIT,
    WIDER,
    Drawn,
    Scales,
    read_info,
)
from tessera_gateway.fleet.load import Defaults, Lines, Load, Recorded
from tessera_gateway.fleet.peek import Peek
from tessera_gateway.fleet.score import Weights

RECORDED = Recorded("t", "", 10, kept=10, host=10)
LOAD = Load(
    "x",
    slots=4,
    recordings=(RECORDED,),
    lines=Lines((0.0, 1.0), (1.0, 1.0)),
    defaults=Defaults(10, 64, 64),
)
EDIT = Peek("edit", template="t", mask=0.1, width=64, height=64)


def draw(book: Book, peek: Peek, times: float, mode: str, now: float) -> float:
    """A picture that takes so many times as long as the worker's own costs say."""
    plain = Book()
    plain.tell("a", LOAD, now)
    truth = plain.choose(peek, now).prediction.total * times
    book.tell("a", LOAD, now)
    choice = book.choose(peek, now)
    book.end(choice, now)
    return book.drew(choice, Drawn(truth, mode), now)


def test_predictions_become_right() -> None:
    book = Book()
    ratios = [draw(book, Peek("generate"), 1.7, "dense", float(i)) for i in range(1, 12)]
    assert ratios[: ENOUGH - 1] == pytest.approx([1.7] * (ENOUGH - 1))
    assert ratios[-1] == pytest.approx(1.0)
    assert book.scales.of("a", "dense") == pytest.approx(1.7)
    assert book.scales.of("a", "sparse") == 1.0


def test_paths_are_learned_apart() -> None:
    book = Book()
    for i in range(1, 40):
        draw(book, EDIT, 0.5, "mixed", float(i))
    assert book.scales.of("a", "sparse") < 0.6
    assert book.scales.of("a", "dense") == 1.0


def test_outliers_change_nothing() -> None:
    scales, chance = Scales(), random.Random(0)
    for i in range(64):
        scales.learn("a", "dense", 1000.0 if i % 3 == 0 else chance.uniform(1.1, 1.3), 1.0, 0.0)
    assert 1.1 <= scales.of("a", "dense") <= 1.3


def test_a_worker_that_was_slow_once_is_tried_again() -> None:
    """As of two workers of a machine: one's costs were measured while it was busy, so it seems fast
    ever after, and the other one's when it was not.
    """
    book = Book()
    for _ in range(ENOUGH):
        book.scales.learn("a", "dense", LIMIT, 1.0, 0.0)
        book.scales.learn("b", "dense", 1 / LIMIT, 1.0, 0.0)

    def total(now: float) -> dict[str, float]:
        for name in ("a", "b"):
            book.tell(name, LOAD, now)
        choice = book.choose(Peek("generate"), now)
        book.end(choice, now)
        return choice.scores

    before, after = total(FORGOTTEN_S), total(FORGOTTEN_S + 1.0)
    assert after["a"] == pytest.approx(before["a"] / LIMIT, rel=0.01)
    assert after["b"] == before["b"], "who seems fast gets requests, and so corrects itself"
    book.scales.learn("a", "dense", LIMIT, 1.0, FORGOTTEN_S + 1.0)
    assert total(FORGOTTEN_S + 1.0) == after, "one picture alone teaches nothing"


@pytest.mark.parametrize(("ratio", "scale"), [(1e6, LIMIT), (1e-6, 1 / LIMIT)])
def test_scales_are_bounded(ratio: float, scale: float) -> None:
    scales = Scales()
    for _ in range(ENOUGH):
        scales.learn("a", "dense", ratio, 1.0, 0.0)
    assert scales.of("a", "dense") == scale
    scales.forget("a")
    assert scales.of("a", "dense") == 1.0


@pytest.mark.parametrize(
    ("load", "mode"),
    [(LOAD, "dense"), (msgspec.structs.replace(LOAD, recordings=()), "sparse")],
    ids=["another path", "another path, nothing recorded"],
)
def test_what_was_not_done_as_predicted_teaches_nothing(load: Load, mode: str) -> None:
    book = Book()
    for i in range(1, 10):
        book.tell("a", load, float(i))
        choice = book.choose(EDIT, float(i))
        book.end(choice, float(i))
        book.drew(choice, Drawn(1e4, mode), float(i))
    assert {book.scales.of("a", path) for path in ("dense", "sparse")} == {1.0}


def test_what_was_missing_teaches_nothing() -> None:
    book = Book()
    asks = Peek("generate", controls=("edges",))
    for i in range(1, 10):
        draw(book, asks, 3.0, "dense", float(i))
    assert book.scales.of("a", "dense") == 1.0


CONTROLLED = Peek("generate", controls=("edges", "pose"))


def missed(book: Book, peek: Peek, drawn: Drawn, now: float) -> float:
    """A picture for which something was missing; its weight's part of the prediction before."""
    book.tell("a", msgspec.structs.replace(LOAD, refit_ms=20.0, parsed=("night",)), now)
    choice = book.choose(peek, now)
    book.end(choice, now)
    book.drew(choice, drawn, now)
    missing = choice.prediction.missing
    return missing["controls"] + missing["merge"]


def test_what_is_missing_costs_what_info_says() -> None:
    book, given = Book(), Weights()
    took = [missed(book, CONTROLLED, Drawn(9.0, control_load_ms=5000.0), i) for i in range(1, 9)]
    assert took == [2 * given.control] * ENOUGH + [5000.0] * (8 - ENOUGH)
    lora = Peek("generate", loras=(("night", 1.0),))
    took = [missed(book, lora, Drawn(9.0, refit_ms=90.0, switches=1), i) for i in range(9, 17)]
    assert took == [given.merge] * ENOUGH + [70.0] * (8 - ENOUGH)
    assert book.weights == msgspec.structs.replace(given, control=2500.0, merge=70.0)


@pytest.mark.parametrize(("ms", "times"), [(1e7, WIDER), (1.0, 1 / WIDER)])
def test_learned_weights_are_bounded_by_the_operators(ms: float, times: float) -> None:
    book = Book(Weights(control=300.0))
    for i in range(1, 9):
        missed(book, CONTROLLED, Drawn(9.0, control_load_ms=ms), i)
    assert book.weights.control == pytest.approx(300.0 * times)


@pytest.mark.parametrize(
    "drawn",
    [Drawn(9.0), Drawn(9.0, refit_ms=90.0, switches=2)],
    ids=["nothing was loaded", "something else was"],
)
def test_weights_stay_where_info_tells_nothing(drawn: Drawn) -> None:
    book = Book()
    for i in range(1, 9):
        missed(book, CONTROLLED, drawn, i)
    assert book.weights == Weights()
    free = Book(Weights(control=0.0))
    missed(free, CONTROLLED, Drawn(9.0, control_load_ms=5.0), 1.0)
    assert free.weights == Weights(control=0.0)


def test_a_worker_that_has_left_is_forgotten() -> None:
    book = Book()
    for i in range(1, 9):
        draw(book, Peek("generate"), 2.0, "dense", float(i))
    book.forget("a")
    book.tell("a", LOAD, 9.0)
    assert book.workers["a"].load is LOAD


@pytest.mark.parametrize(
    ("info", "drawn"),
    [
        (b'{"total_ms": 12.5, "mode": "mixed", "seed": 1}', Drawn(12.5, "mixed")),
        (b'{"total_ms": 0}', None),
        (b'{"mode": "dense"}', None),
        (b'{"total_ms": "x"}', None),
        (b"worker", None),
        (b"", None),
        (None, None),
    ],
    ids=["INFO", "no time", "nothing", "wrong type", "no JSON", "empty", "none"],
)
def test_info_is_read(info: bytes | None, drawn: Drawn | None) -> None:
    assert read_info(info) == drawn

"""The choice among workers."""

from __future__ import annotations

import msgspec
import pytest

from tessera_gateway.fleet.book import SLOW_S, STALE_S, Book, NoWorker
from tessera_gateway.fleet.load import Defaults, Lines, Load, Recorded, Running
from tessera_gateway.fleet.masks import edited_of
from tessera_gateway.fleet.peek import Peek
from tessera_gateway.fleet.wire import Tensor

IDLE = Load("x", slots=4, lines=Lines((0.0, 1.0), (1.0, 1.0)), defaults=Defaults(10, 64, 64))


@pytest.fixture
def book() -> Book:
    book = Book()
    for name in ("b", "a"):
        book.tell(name, IDLE, 100.0)
    return book


def test_equal_workers_take_turns_by_what_is_in_flight(book: Book) -> None:
    peek = Peek("generate")
    choices = [book.choose(peek, 100.0) for _ in range(4)]
    assert [c.worker for c in choices] == ["a", "b", "a", "b"]
    book.end(choices[0], 100.0)
    assert book.choose(peek, 100.0).worker == "a"


def test_requests_that_cost_nothing_go_where_fewest_are_in_flight(book: Book) -> None:
    jobs = [book.choose(Peek("jobs"), 100.0).worker for _ in range(2)]
    assert jobs == ["a", "b"]


def test_a_template_is_edited_where_it_is_recorded(book: Book) -> None:
    recorded = Recorded("t", "", 10, kept=10, host=10)
    book.tell("b", msgspec.structs.replace(IDLE, recordings=(recorded,)), 100.0)
    edit = Peek("edit", template="t", mask=0.1, width=64, height=64)
    choice = book.choose(edit, 100.0)
    assert choice.worker == "b"
    assert choice.scores["b"] < choice.scores["a"]
    assert choice.prediction.total == pytest.approx(choice.scores["b"], abs=0.1)


def test_a_template_without_recording_is_edited_where_its_picture_is(book: Book) -> None:
    by_id = Peek("edit", template="t", mask=0.1, width=64, height=64)
    assert book.choose(by_id, 100.0).worker == "a"  # nobody has it: any can say so
    book.choose(Peek("edit", template="t", image=True, mask=0.1), 100.0, avoid=["a"])
    assert [book.choose(by_id, 100.0).worker for _ in range(3)] == ["b"] * 3
    book.tell("a", msgspec.structs.replace(IDLE, templates=frozenset("u")), 100.0)
    by_id = Peek("edit", template="u", mask=0.1, width=64, height=64)
    assert [book.choose(by_id, 100.0).worker for _ in range(3)] == ["a"] * 3


def test_a_template_that_was_evicted_and_came_again(book: Book) -> None:
    """What a worker still tells of it is old."""
    by_id = Peek("edit", template="t", mask=0.1, width=64, height=64)
    book.tell("a", msgspec.structs.replace(IDLE, templates=frozenset("t")), 100.0)
    book.evict("t", 100.0, book.workers.keys())
    book.end(book.choose(Peek("templates", template="t", image=True), 100.1, avoid=["a"]), 100.1)
    assert [book.choose(by_id, 100.2).worker for _ in range(3)] == ["b"] * 3
    book.evict("t", 100.3, book.workers.keys())
    for name in ("a", "b"):
        book.tell(name, IDLE, 104.0)
    assert {book.choose(by_id, 104.0).worker for _ in range(9)} == {"a", "b"}
    assert book.workers["a"].evicted == book.workers["b"].brought == {}


@pytest.mark.parametrize(("mode", "fine"), [("dense", True), ("", False)])
def test_a_picture_that_the_worker_does_not_keep(book: Book, mode: str, fine: bool) -> None:
    """A dense edit's, and that of one that failed."""
    edit = Peek("edit", template="t", image=True, mask=0.1, mode=mode)
    choice = book.choose(edit, 100.0)
    assert book.knowing("t", 100.0) == ([] if mode else [choice.worker])
    book.end(choice, 100.0, fine=fine)
    assert book.knowing("t", 100.0) == []
    book.end(book.choose(Peek("edit", template="t", image=True), 100.0), 100.0)
    assert len(book.knowing("t", 100.0)) == 1
    by_id = book.choose(Peek("edit", template="t", mask=0.1), 100.0)
    book.end(by_id, 100.0, fine=False)
    assert book.knowing("t", 100.0) == [by_id.worker]


def test_a_copy_counts_once_it_is_there(book: Book) -> None:
    book.tell("a", msgspec.structs.replace(IDLE, templates=frozenset("t")), 100.0)
    copy = Peek("templates", action="register", template="t", image=True)
    choice = book.choose(copy, 100.0, avoid=["a"])
    assert book.knowing("t", 100.0) == ["a"]
    book.end(choice, 100.0, fine=False)
    assert book.knowing("t", 100.0) == ["a"]
    book.end(book.choose(copy, 100.0, avoid=["a"]), 100.0)
    assert book.knowing("t", 100.0) == ["a", "b"]


def test_what_is_registered_again_stays_where_it_is_recorded(book: Book) -> None:
    recorded = Recorded("t", "", 10, kept=10, host=10)
    busy = (Running("x", left=50, branches=2, height=8, width=8),)
    book.tell("b", msgspec.structs.replace(IDLE, recordings=(recorded,), running=busy), 100.0)
    again = Peek("templates", action="register", template="t", image=True)
    assert book.choose(again, 100.0).worker == "b"
    assert book.choose(again, 100.0, avoid=["b"]).worker == "a"


def test_but_not_when_that_takes_longer(book: Book) -> None:
    recorded = Recorded("t", "", 10, kept=10, host=10)
    busy = tuple(Running(str(i), left=50, branches=2, height=8, width=8) for i in range(4))
    book.tell("b", msgspec.structs.replace(IDLE, recordings=(recorded,), running=busy), 100.0)
    edit = Peek("edit", template="t", mask=0.1, width=64, height=64)
    assert book.choose(edit, 100.0).worker == "a"


def test_who_fails_is_left_out_until_it_tells_again(book: Book) -> None:
    book.fail("a")
    assert book.live(100.0) == ["b"]
    book.tell("a", IDLE, 100.1)
    assert book.live(100.2) == ["a", "b"]


def test_who_is_silent_is_left_out(book: Book) -> None:
    book.tell("a", IDLE, 102.0)
    assert book.live(100.0 + STALE_S + 0.1) == ["a"]


def test_who_is_silent_takes_what_nobody_else_can(book: Book) -> None:
    """A busy machine keeps a worker from telling, and not from drawing."""
    by_id = Peek("edit", template="t", mask=0.1)
    book.tell("b", msgspec.structs.replace(IDLE, templates=frozenset("t")), 100.0)
    book.tell("a", IDLE, 104.0)
    assert book.open(104.0) == ["a"]
    assert {book.choose(by_id, 104.0).worker for _ in range(3)} == {"b"}
    assert {book.choose(Peek("generate"), 104.0).worker for _ in range(3)} == {"a"}
    assert book.choose(Peek("generate"), 108.0, avoid=["a"]).worker == "b"
    with pytest.raises(NoWorker):
        book.choose(Peek("generate"), 105.0 + SLOW_S)


def test_a_template_whose_worker_cannot_be_reached_is_not_unknown(book: Book) -> None:
    by_id = Peek("edit", template="t", mask=0.1)
    book.tell("b", msgspec.structs.replace(IDLE, templates=frozenset("t")), 100.0)
    book.fail("b")
    with pytest.raises(NoWorker, match="no worker that has template t can be reached"):
        book.choose(by_id, 100.0)
    book.forget("b")
    assert book.choose(by_id, 100.0).worker == "a", "it says that it does not know the template"


def test_nobody_is_left(book: Book) -> None:
    with pytest.raises(NoWorker, match="no worker of the fleet is ready"):
        book.choose(Peek("generate"), 100.0, avoid=["a", "b"])
    book.forget("a")
    assert book.live(100.0) == ["b"]


def test_jobs_stick(book: Book) -> None:
    choice = book.choose(Peek("generate", job="j"), 100.0, avoid=["a"])
    book.end(choice, 101.0)
    assert book.worker_of("j") == "b"
    assert book.worker_of("other") is None


def test_a_job_that_has_ended_here_no_longer_counts(book: Book) -> None:
    choice = book.choose(Peek("generate", job="j"), 100.0)
    running = (Running("j", left=9, branches=2, height=8, width=8),)
    book.tell("a", msgspec.structs.replace(IDLE, running=running), 100.5)
    assert book.choose(Peek("generate"), 100.5).worker == "b"
    book.end(choice, 100.6)
    assert book.choose(Peek("generate"), 100.6).scores["a"] < 1300


def test_its_end_is_forgotten_in_time(book: Book) -> None:
    book.end(book.choose(Peek("generate", job="j"), 100.0), 100.0)
    book.tell("a", IDLE, 110.0)
    assert book.workers["a"].ended == {}


def test_choices_keep_neither_texts_nor_masks(book: Book) -> None:
    """A caller may send as many as it likes."""
    words = (Tensor("PROMPT", (1, 1), b"text"),)
    edited = edited_of(
        {"MASK": Tensor("MASK", (1, 8, 8), bytes([255]) * 64)}, soft=False, room=None
    )
    assert edited is not None
    asked = Peek("edit", template="t", mask=1.0, edited=edited, words=words)
    choice = book.choose(asked, 100.0)
    ((peek, _),) = book.choices
    assert (peek.template, peek.mask, peek.edited, peek.words) == ("t", 1.0, None, ())
    assert book.workers[choice.worker].sent[choice.token].edited is edited


def test_choices_are_remembered_with_what_spoke_for_them(book: Book) -> None:
    book.tell("b", msgspec.structs.replace(IDLE, controls=("edges",)), 100.0)
    book.choose(Peek("jobs"), 100.0)
    book.choose(Peek("generate", job="j", controls=("edges",)), 100.0)
    ((peek, choice),) = book.choices
    assert (peek.job, choice.worker) == ("j", "b")
    assert choice.missing == {"a": {"controls": book.weights.control}, "b": {}}
    assert choice.scores["a"] == pytest.approx(choice.scores["b"] + book.weights.control)

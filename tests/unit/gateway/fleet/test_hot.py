"""When a template is worth a copy."""

from __future__ import annotations

import dataclasses

import msgspec

from tessera_gateway.fleet.book import Book
from tessera_gateway.fleet.hot import FELT_S, Heat
from tessera_gateway.fleet.load import Defaults, Lines, Load, Recorded, Running
from tessera_gateway.fleet.peek import Peek

IDLE = Load("x", slots=1, lines=Lines((0.0, 1.0), (1.0, 0.5)), defaults=Defaults(10, 64, 64))
EDIT = Peek("edit", template="t", mask=0.1, width=64, height=64, guidance=1.0)
RECORDED = msgspec.structs.replace(
    IDLE, templates=frozenset("t"), recordings=(Recorded("t", "", 10, kept=10, host=10),)
)
RECORDING_MS = 10 * 64.0
"""Ten dense steps of 64 latents, one branch each."""


def busy(left: int) -> Load:
    """The worker that has the recording, with so many dense steps of another request."""
    running = Running("other", left=left, branches=1, height=8, width=8)
    return msgspec.structs.replace(RECORDED, running=(running,))


def book_of(home: Load, other: Load = IDLE) -> Book:
    book = Book()
    book.tell("home", home, 100.0)
    book.tell("other", other, 100.0)
    return book


def felt(heat: Heat, book: Book, edit: Peek = EDIT, now: float = 100.0) -> str | None:
    choice = book.choose(edit, now)
    try:
        return heat.felt(book, edit, choice, now)
    finally:
        book.end(choice, now)


def test_edits_that_wait_longer_than_a_recording_takes_make_their_template_hot() -> None:
    """Each of them loses the three steps that it waits for."""
    heat, book = Heat(), book_of(busy(3))
    until = [felt(heat, book) for _ in range(4)]
    assert until == [None, None, None, "other"]  # 4 x 3 x 64 ms are more than 640 ms
    assert [felt(heat, book) for _ in range(4)] == until, "and from the beginning"


def test_a_long_wait_counts_at_once() -> None:
    assert felt(Heat(), book_of(busy(11))) == "other"
    assert felt(Heat(), book_of(busy(9))) is None


def test_a_copy_with_both_prompts_has_to_save_two_recordings() -> None:
    """A guided edit has one of each made. It waits for eleven steps, and these take twenty."""
    for quality, until in (("fast", ["other"]), ("balanced", [None, "other"])):
        edit = dataclasses.replace(EDIT, quality=quality, guidance=2.0, mask=1.0)
        heat, book = Heat(), book_of(busy(11))
        assert [felt(heat, book, edit) for _ in until] == until


def test_what_was_lost_long_ago_no_longer_counts() -> None:
    heat, book = Heat(), book_of(busy(9))
    assert felt(heat, book) is None
    later = 101.0 + FELT_S
    for name, load in (("home", busy(9)), ("other", IDLE)):
        book.tell(name, load, later)
    assert felt(heat, book, now=later) is None
    assert felt(heat, book, now=later) == "other"


def test_nothing_is_lost_where_nobody_waits_or_the_others_are_as_busy() -> None:
    as_busy = msgspec.structs.replace(IDLE, running=busy(50).running)
    for book in (book_of(RECORDED), book_of(busy(50), as_busy), book_of(busy(50), busy(0))):
        assert [felt(Heat(), book) for _ in range(20)] == [None] * 20


def test_reading_from_disk_loses_nothing() -> None:
    """A copy would have to be read, too. So a template stays on a worker that has nothing to do."""
    on_disk = msgspec.structs.replace(
        RECORDED, recordings=(Recorded("t", "", 10, kept=10),), read_ms=5000.0
    )
    heat, book = Heat(), book_of(on_disk)
    assert [felt(heat, book) for _ in range(20)] == [None] * 20


def test_a_recording_that_its_worker_has_not_told_of_yet_loses_nothing() -> None:
    """The first edit after a registration may come before that: it seems to wait for its making."""
    registered = msgspec.structs.replace(IDLE, templates=frozenset("t"))
    heat, book = Heat(), book_of(registered)
    sparse = dataclasses.replace(EDIT, mode="sparse")
    assert [felt(heat, book, sparse) for _ in range(20)] == [None] * 20


def test_only_edits_of_templates_lose_something() -> None:
    for peek in (Peek("generate"), Peek("templates", action="register", template="t")):
        assert felt(Heat(), book_of(busy(50)), peek) is None

"""The address of a fleet, and what it tells."""

from __future__ import annotations

from tessera_gateway.fleet.book import Book
from tessera_gateway.fleet.front import chosen, digest_of
from tessera_gateway.fleet.load import Load
from tessera_gateway.fleet.peek import Peek
from tessera_gateway.fleet.pool import Pool


def test_choices_tell_no_ids() -> None:
    """Who knows a job's id can cancel it, and who knows a template's can see it."""
    pool = Pool(Book())
    pool.book.tell("a", Load(), 100.0)
    pool.book.choose(Peek("edit", job="j", template="t"), 100.0)
    pool.book.choose(Peek("generate", job="k"), 100.0)
    told = [(each["job"], each["template"]) for each in chosen(pool)]
    assert told == [(digest_of("j"), digest_of("t")), (digest_of("k"), None)]

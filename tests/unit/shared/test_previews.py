"""Latents of watched jobs: what is read is whole, whatever the writer is doing."""

from __future__ import annotations

import multiprocessing
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera.shared import previews as module
from tessera.shared.previews import Latents, PreviewReader, PreviewWriter

FLOATS = 4 * 64 * 64


def filled(step: int, side: int = 64) -> Latents:
    return np.full((4, side, side), step, np.float32)


def test_nothing_is_there_before_the_first_step(tmp_path: Path) -> None:
    reader = PreviewReader(tmp_path / "p")
    assert reader.read(1) is None
    (tmp_path / "p").touch()
    assert reader.read(1) is None
    PreviewWriter(tmp_path / "p", places=2, floats=FLOATS)
    assert reader.read(1) is None


def test_the_latest_latents_of_each_job(tmp_path: Path) -> None:
    writer = PreviewWriter(tmp_path / "p", places=2, floats=FLOATS)
    reader = PreviewReader(tmp_path / "p")
    for step in (1, 2, 3):
        writer.write(7, step, filled(step))
        writer.write(8, 10 * step, filled(10 * step, side=5))
    for ticket, step, side in ((7, 3, 64), (8, 30, 5)):
        found = reader.read(ticket)
        assert found is not None
        assert found[0] == step
        np.testing.assert_array_equal(found[1], filled(step, side))


@given(
    writes=st.lists(
        st.tuples(st.integers(1, 6), st.integers(1, 9), st.integers(1, 4)), max_size=40
    ),
    places=st.integers(1, 4),
)
def test_the_jobs_written_last_are_there(
    tmp_path_factory: pytest.TempPathFactory, writes: list[tuple[int, int, int]], places: int
) -> None:
    path = tmp_path_factory.mktemp("previews") / "p"
    writer, reader = PreviewWriter(path, places=places, floats=4 * 16), PreviewReader(path)
    latest: dict[int, tuple[int, int]] = {}
    for ticket, step, side in writes:
        if latest.get(ticket, (0, 0))[0] != step:  # the same step has the same latents
            writer.write(ticket, step, filled(step, side))
            latest[ticket] = latest.pop(ticket, (0, 0)) and (step, side)
    order = list(latest)
    for ticket, (step, side) in latest.items():
        found = reader.read(ticket)
        if ticket in order[-places:]:
            assert found is not None
            assert found[0] == step
            np.testing.assert_array_equal(found[1], filled(step, side))
        else:
            assert found is None


@given(position=st.integers(0, module._HEAD.itemsize + 4 * 64 - 1))
def test_a_record_that_is_not_whole_is_passed_over(
    tmp_path_factory: pytest.TempPathFactory, position: int
) -> None:
    """As if the writer had been killed, or another processor saw its writes in another order."""
    path = tmp_path_factory.mktemp("previews") / "p"
    writer, reader = PreviewWriter(path, places=1, floats=64), PreviewReader(path)
    for step in (1, 2):
        writer.write(7, step, filled(step, side=4))
    newest = int(writer._heads[0]["number"].argmax())
    head, values = writer._heads[0, newest : newest + 1], writer._values[0, newest]
    of_head = position < module._HEAD.itemsize
    torn = head.view(np.uint8) if of_head else values.view(np.uint8)
    torn[position - (0 if of_head else module._HEAD.itemsize)] ^= 0xFF
    found = reader.read(7)
    assert found is not None
    assert found[0] == 1
    np.testing.assert_array_equal(found[1], filled(1, side=4))


def _write_many(path: Path, begun: threading.Event, over: threading.Event) -> None:
    writer, step = PreviewWriter(path, places=1, floats=FLOATS), 0
    while not over.is_set():
        step += 1
        writer.write(7, step, filled(step))
        begun.set()


def test_a_reader_beside_a_writer_sees_whole_latents_only(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    begun, over = context.Event(), context.Event()
    process = context.Process(target=_write_many, args=(tmp_path / "p", begun, over))
    process.start()
    try:
        assert begun.wait(300)
        reader, seen = PreviewReader(tmp_path / "p"), [0]
        until = time.monotonic() + 300
        while len(set(seen)) <= 50 and time.monotonic() < until:
            if found := reader.read(7):
                step, latents = found
                assert (latents == step).all()
                seen.append(step)
    finally:
        over.set()
        process.join(300)
    assert process.exitcode == 0
    assert len(set(seen)) > 50
    assert seen == sorted(seen)


def test_a_new_writer_forgets_what_an_earlier_one_left(tmp_path: Path) -> None:
    PreviewWriter(tmp_path / "p", places=1, floats=FLOATS).write(7, 1, filled(1))
    reader = PreviewReader(tmp_path / "p")
    assert reader.read(7) is not None
    writer = PreviewWriter(tmp_path / "p", places=1, floats=FLOATS)
    assert reader.read(7) is None
    writer.write(7, 2, filled(2))
    found = reader.read(7)
    assert found is not None
    assert found[0] == 2


def test_one_at_a_time_is_alone(tmp_path: Path) -> None:
    PreviewWriter(tmp_path / "p", places=1, floats=FLOATS)
    first, second = PreviewReader(tmp_path / "p"), PreviewReader(tmp_path / "p")
    with first.alone() as alone, second.alone() as other:
        assert (alone, other) == (True, False)
    with second.alone() as alone:
        assert alone

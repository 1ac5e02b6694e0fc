"""A wait that a signal ends."""

from __future__ import annotations

import os
import threading
import time

import pytest

from tessera.serve.wake import Wake
from tests.samples.waiting import PATIENCE_S


def test_a_wait_ends_when_it_is_set_and_all_later_ones_at_once() -> None:
    wake = Wake()
    threading.Timer(0.05, wake.set).start()
    began = time.monotonic()
    for _ in range(3):
        wake.wait(2 * PATIENCE_S)
    assert time.monotonic() - began < PATIENCE_S


def test_closed_or_collected_it_leaves_no_descriptor() -> None:
    wake = Wake()
    descriptor = wake.descriptor
    wake.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)
    wake.close()  # and harms nobody who has the number now
    other = Wake()
    descriptor = other.descriptor
    del other
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)

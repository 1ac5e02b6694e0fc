"""Ends a wait, from the handler of a signal. Standard library only."""

from __future__ import annotations

import os
import selectors
import weakref


class Wake:
    """Waits for `set`.

    Attributes:
        descriptor: becomes readable then, and stays so.
    """

    def __init__(self) -> None:
        self.descriptor = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._closes = weakref.finalize(self, os.close, self.descriptor)
        self._closes.atexit = False  # a signal may come until then

    def set(self) -> None:
        """End all waits, now and from now on."""
        os.eventfd_write(self.descriptor, 1)

    def wait(self, seconds: float) -> None:
        """Wait so long at most."""
        with selectors.DefaultSelector() as selector:
            selector.register(self.descriptor, selectors.EVENT_READ)
            selector.select(seconds)

    def close(self) -> None:
        """Close the descriptor: nobody will set this or wait for it any more."""
        self._closes()

"""Tells `denoise`, ahead of its queue, which LoRAs an encoded request will need.

Sends datagrams over a Unix socket in the abstract namespace, so that no file remains. A lost
datagram costs only time. Standard library only.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import socket
import threading
from collections.abc import Callable
from pathlib import Path

from tessera.plan import AdapterUse

_LARGEST = 2**16


def send_prefetch(board: Path, uses: tuple[AdapterUse, ...]) -> None:
    """Send adapter uses to the listener of the same server, if there is one. Never waits."""
    content = json.dumps([dataclasses.asdict(use) for use in uses]).encode()
    with (
        contextlib.suppress(OSError),
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sender,
    ):
        sender.sendto(content, _address(board))


class PrefetchListener:
    """Calls `act` in a separate thread for every datagram, until it is closed.

    Args:
        board: path of the server's board, which identifies the server.
        act: receives the adapter set; must not raise.
    """

    def __init__(self, board: Path, act: Callable[[tuple[AdapterUse, ...]], None]) -> None:
        self._act = act
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(_address(board))
        self._thread = threading.Thread(target=self._listen, name="prefetch", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join()

    def _listen(self) -> None:
        while True:
            try:
                content = self._socket.recv(_LARGEST)
            except OSError:
                return
            if not content:
                return  # shut down
            with contextlib.suppress(ValueError, TypeError):  # not a datagram of `send_prefetch`
                self._act(tuple(AdapterUse(**use) for use in json.loads(content)))


def _address(board: Path) -> bytes:
    name = hashlib.sha256(str(board.resolve()).encode()).hexdigest()[:32]
    return f"\0tessera-hints-{name}".encode()

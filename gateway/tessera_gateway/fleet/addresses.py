"""The directory of a fleet: where its workers are, as they say again and again."""

from __future__ import annotations

import time

from tessera_gateway.fleet.settings import Server

FORGOTTEN_S = 5.0
"""After so long without a word, a worker is not there any more."""


class Addresses:
    """Of the workers, by their numbers."""

    def __init__(self) -> None:
        self._seen: dict[int, tuple[float, Server]] = {}

    def say(self, number: int, server: Server) -> None:
        """A worker is there; it takes the place of an earlier one of its number."""
        self._seen[number] = (time.monotonic(), server)

    def leave(self, number: int, server: Server) -> None:
        """A worker ends."""
        if number in self._seen and self._seen[number][1] == server:
            del self._seen[number]

    def servers(self) -> dict[int, Server]:
        """Those that have said so lately."""
        latest = time.monotonic() - FORGOTTEN_S
        return {number: server for number, (at, server) in self._seen.items() if at > latest}

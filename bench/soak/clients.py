"""The client processes of a soak."""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import queue
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from bench.server import Server
from bench.soak.traffic import PATIENCE_S, Expected, Happened, ask_on


class Clients:
    """Ask while the block lasts, half of them over HTTP and half over gRPC.

    Args:
        server: which.
        options: `clients`, `threads` and `seed`.
        expected: what `bench.soak.traffic.alone` gave.
        wrong: folder of wrong pictures.

    Attributes:
        happened: every request that has ended; after the block, all of them.
    """

    def __init__(
        self,
        server: Server,
        options: argparse.Namespace,
        expected: Mapping[str, Expected],
        wrong: Path,
    ) -> None:
        spawn = multiprocessing.get_context("spawn")
        self._stop, self._told = spawn.Event(), spawn.Queue()
        urls = (server.http, server.grpc)
        self._processes = [
            spawn.Process(
                target=ask_on,
                args=(
                    urls[number % 2],
                    options.threads,
                    options.seed + number,
                    expected,
                    self._stop,
                    self._told,
                    wrong,
                ),
                daemon=True,
            )
            for number in range(options.clients)
        ]
        self._reader = threading.Thread(target=self._read, daemon=True)
        self.happened: list[Happened] = []

    def __enter__(self) -> Self:
        for each in self._processes:
            each.start()
        self._reader.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        end = time.monotonic() + 2 * PATIENCE_S
        for each in self._processes:
            each.join(max(0.0, end - time.monotonic()))
        self._reader.join()
        for each in self._processes:
            if each.is_alive():
                each.kill()
                now = time.monotonic()
                self.happened.append(Happened(now, "a client", "hung", 2 * PATIENCE_S))

    def _read(self) -> None:
        """Until all processes have ended and nothing is left to read, or they hang."""
        end = None
        while True:
            with contextlib.suppress(queue.Empty):
                self.happened.append(self._told.get(timeout=0.5))
                continue
            if self._stop.is_set():
                end = end or time.monotonic() + 2 * PATIENCE_S
                if not any(p.is_alive() for p in self._processes) or time.monotonic() > end:
                    return
